"""LoRA KD: all experts distilled into one student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lole.lole.experts import LoRAExperts
from espnet_lole.whisper.model import Encoded, Whisper

STUDENT = "student"
"""Name of the student's adapter."""
KINDS = {"none": (False, False), "logits": (False, True), "layers": (True, False), "both": (True, True)}
"""Kind of distillation -> whether it has the layer-wise loss and that of the logits."""


@dataclass(frozen=True)
class KDConfig:
    """The losses of distillation.

    Attributes:
        kd: ``none``, ``logits``, ``layers`` or ``both``.
        layer_weight: of the mean over the layers of ``1 - cos``.
        logit_weight: of the Jensen-Shannon divergence of the outputs.
        temperature: of the outputs in it.
        encoder_layers: numbers from 1 of the layers compared; None: all.
        decoder_layers: the same for the decoder.
        final_factor: both weights move linearly to this many times their value from the first epoch to the last.
    """

    kd: str = "both"
    layer_weight: float = 1.0
    logit_weight: float = 1.0
    temperature: float = 1.0
    encoder_layers: tuple[int, ...] | None = None
    decoder_layers: tuple[int, ...] | None = None
    final_factor: float = 1.0

    def __post_init__(self) -> None:
        if (
            self.kd not in KINDS
            or min(self.layer_weight, self.logit_weight, self.final_factor) < 0
            or self.temperature <= 0
        ):
            raise ValueError(f"expected kd of {sorted(KINDS)}, weights >= 0 and temperature > 0, got {self}")


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute ``1 - cos`` of hidden states (B, T, D), shape (B, T), as half the squared distance of the unit vectors.

    In this form equal states have a loss of exactly 0.
    """
    distance = F.normalize(student.float(), dim=-1) - F.normalize(teacher.float(), dim=-1)
    return 0.5 * distance.square().sum(-1)


def js_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute the Jensen-Shannon divergence of softmax(student / t) and softmax(teacher / t), times ``t**2``.

    The factor preserves the gradient's size when t changes (Hinton et al., 2015).

    Args:
        student_logits: shape (N, V).
        teacher_logits: shape (N, V).
        temperature: t.

    Returns:
        Shape (N,).
    """
    log_p = (student_logits.float() / temperature).log_softmax(-1)
    log_q = (teacher_logits.float() / temperature).log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    divergences = (F.kl_div(log_m, log_x, log_target=True, reduction="none").sum(-1) for log_x in (log_p, log_q))
    return temperature**2 / 2 * sum(divergences)


@dataclass(frozen=True)
class Pass:
    """A pass of student or teacher: each compared layer's states, and the decoder's last states (B, U, D)."""

    layers: list[Tensor]
    states: Tensor


class Student(nn.Module):
    """One LoRA for all languages, and the experts that teach it on a second Whisper with the same weights.

    Args:
        student: experts of one adapter, ``student``.
        teacher: the experts of the languages; None without distillation.
        config: the losses.

    Raises:
        ValueError: a layer to compare does not exist, or there is no teacher for a distillation.
    """

    def __init__(self, student: LoRAExperts, teacher: LoRAExperts | None, config: KDConfig) -> None:
        super().__init__()
        if teacher is None and config.kd != "none":
            raise ValueError(f"expected the experts for kd_conf kd: {config.kd}, got none: give --experts")
        self.student, self.config = student, config
        self.teacher = None if teacher is None else teacher.requires_grad_(False)
        self.with_layers, self.with_logits = KINDS[config.kd]
        self.layer_names = compared_layers(student.whisper, config) if self.with_layers else []

    def run_student(self, embedded: Encoded, tokens: Tensor) -> Pass:
        """Run the student on the input of encoder layer 1 and tokens (B, U)."""
        return self._run(self.student, embedded, tokens, [0] * len(tokens))

    @torch.no_grad()
    def run_teacher(self, embedded: Encoded, tokens: Tensor, experts: list[int]) -> Pass:
        """Run each utterance's expert on the same input."""
        return self._run(self.teacher, embedded, tokens, experts)

    def _run(self, experts: LoRAExperts, embedded: Encoded, tokens: Tensor, index: list[int]) -> Pass:
        layers = [find_layer(experts.whisper, name) for name in self.layer_names]
        with experts.activate(index), experts.whisper.record(layers) as states:
            last = experts.whisper.decode(tokens, experts.whisper.finish(embedded))
        return Pass(states, last)

    def layer_losses(
        self, student: Pass, teacher: Pass, masks: Mapping[str, Tensor | None]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Compute sum and count of each layer's loss over the valid positions.

        Args:
            student: its pass.
            teacher: its pass.
            masks: ``enc`` and ``dec`` -> True at valid positions, shape (B, T); None: all are.
        """
        losses = {}
        for name, states, teacher_states in zip(self.layer_names, student.layers, teacher.layers, strict=True):
            loss, mask = cosine_loss(states, teacher_states), masks[name[:3]]
            mask = torch.ones_like(loss) if mask is None else mask.to(loss)
            losses[name] = (loss * mask).sum(), mask.sum()
        return losses


def compared_layers(whisper: Whisper, config: KDConfig) -> list[str]:
    """Return the names of the layers whose states are compared: ``enc1``, ..., ``dec1``, ...

    Raises:
        ValueError: one does not exist.
    """
    names = []
    for part, layers, numbers in (
        ("enc", whisper.encoder.layers, config.encoder_layers),
        ("dec", whisper.decoder.layers, config.decoder_layers),
    ):
        numbers = range(1, len(layers) + 1) if numbers is None else numbers
        if wrong := [n for n in numbers if not 1 <= n <= len(layers)]:
            raise ValueError(f"expected layers from 1 to {len(layers)} in {part}oder_layers of kd_conf, got {wrong}")
        names += [f"{part}{n}" for n in numbers]
    return names


def find_layer(whisper: Whisper, name: str) -> nn.Module:
    """Return a layer by its name, such as ``enc1`` or ``dec2``."""
    part = whisper.encoder if name.startswith("enc") else whisper.decoder
    return part.layers[int(name[3:]) - 1]


def average_svd(a: Tensor, b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the SVD ``U S V^T`` of ``sum_i w_i B_i A_i`` without forming that matrix.

    ``[w_i B_i] = Q1 R1`` and ``[A_i]^T = Q2 R2`` make it ``Q1 (R1 R2^T) Q2^T``, whose SVD is that of the small core.

    Args:
        a: shape (E, R, D_in).
        b: shape (E, D_out, R).
        weights: shape (E,).

    Returns:
        U (D_out, K), S (K,) and V^T (K, D_in) for ``K = min(E R, D_in, D_out)``.
    """
    left = (weights[:, None, None] * b).transpose(0, 1).flatten(1)  # (D_out, E R)
    q1, r1 = torch.linalg.qr(left)
    q2, r2 = torch.linalg.qr(a.flatten(0, 1).T)
    u, s, vh = torch.linalg.svd(r1 @ r2.T, full_matrices=False)
    return q1 @ u, s, vh @ q2.T


def truncated_average(a: Tensor, b: Tensor, weights: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Compute factors of the truncated SVD of ``sum_i w_i B_i A_i``, the nearest matrix of that rank (Eckart-Young).

    Args:
        a: shape (E, R, D_in).
        b: shape (E, D_out, R).
        weights: shape (E,).
        rank: of the result.

    Returns:
        A of shape (k, D_in) and B of shape (D_out, k) for ``k = min(rank, E R, D_in, D_out)``, with the root of the
        singular values in each, and the share of the energy (squared Frobenius norm) that they preserve.
    """
    u, s, vh = average_svd(a, b, weights)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root, float(energy_shares(s)[len(root) - 1])


def energy_shares(singular_values: Tensor) -> Tensor:
    """Return the share of the energy (squared Frobenius norm) in the first 1 .. k singular values, shape (k,)."""
    energy = singular_values.square().cumsum(0)
    return energy / energy[-1].clamp(min=torch.finfo(singular_values.dtype).tiny)


@torch.no_grad()
def init_from_average(student: LoRAExperts, experts: LoRAExperts) -> dict[str, float]:
    """Set a student to the truncated average of the experts; ranks beyond theirs have the random start (zero update).

    Args:
        student: one adapter on the linears of the experts.
        experts: to average.

    Returns:
        For each linear, the share of the average's energy that the student preserves.

    Raises:
        ValueError: the student does not have the experts' linears.
    """
    layers, teacher_layers = student.layers, experts.layers
    if differ := sorted(set(layers) ^ set(teacher_layers)):
        raise ValueError(
            f"expected a student on the linears of the experts, got {len(differ)} that differ, e.g. {differ[0]}: give "
            f"expert_conf the experts' targets {list(experts.config.targets)}"
        )
    shares = {}
    for name, layer in layers.items():
        a, b = (torch.stack(list(f.values())) for f in (teacher_layers[name].lora_A, teacher_layers[name].lora_B))
        uniform = a.new_full((len(a),), 1 / len(a))
        a, b, shares[name] = truncated_average(a, b, uniform, student.config.rank)
        layer.lora_A[STUDENT][: len(a)] = a
        layer.lora_B[STUDENT][:, : len(a)] = b * (teacher_layers[name].scale / layer.scale)
    return shares

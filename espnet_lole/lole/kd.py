"""LoRA KD: all experts distilled into one student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lole.lole.experts import ExpertLinear, LoRAExperts
from espnet_lole.lole.mole import merge_delta
from espnet_lole.whisper.model import Encoded, Whisper

STUDENT = "student"
"""Name of the student's adapter."""
KINDS = {"none": (False, False), "logits": (False, True), "layers": (True, False), "both": (True, True)}
"""Kind of distillation -> whether hidden states are compared layer by layer, and whether outputs are."""


@dataclass(frozen=True)
class KDConfig:
    """The losses of distillation.

    Attributes:
        kd: ``none``, ``logits``, ``layers`` or ``both``.
        layer_weight: weight of ``1 - cos``, the mean over the compared layers.
        logit_weight: weight of the Jensen-Shannon divergence between the outputs.
        temperature: divides the logits in the divergence.
        encoder_layers: numbers, from 1, of the compared layers; None: all.
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
    """Compute ``1 - cos`` of hidden states (B, T, D), shape (B, T).

    Half the squared distance of the unit vectors is ``1 - cos`` without the rounding errors of ``1 - x`` for x near 1.
    """
    distance = F.normalize(student.float(), dim=-1) - F.normalize(teacher.float(), dim=-1)
    return 0.5 * distance.square().sum(-1)


def js_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute the Jensen-Shannon divergence of ``p = softmax(student / t)`` and ``q = softmax(teacher / t)``.

    It is multiplied by ``t**2``, which preserves the gradient's size when t changes (Hinton et al., 2015).

    Args:
        student_logits: shape (N, V).
        teacher_logits: shape (N, V).
        temperature: t.

    Returns:
        Shape (N,).
    """
    log_p = (student_logits.float() / temperature).log_softmax(-1)
    log_q = (teacher_logits.float() / temperature).log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)  # m = (p + q) / 2
    kl_p_m = F.kl_div(log_m, log_p, log_target=True, reduction="none").sum(-1)
    kl_q_m = F.kl_div(log_m, log_q, log_target=True, reduction="none").sum(-1)
    return temperature**2 / 2 * (kl_p_m + kl_q_m)


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of student or teacher.

    Attributes:
        layers: output of each compared layer, ``enc1``, ..., ``dec1``, ..., shape (B, T, D) or (B, U, D).
        last: the decoder's, after its final norm, shape (B, U, D).
    """

    layers: dict[str, Tensor]
    last: Tensor


class LoRAKD(nn.Module):
    """A student, one LoRA for all languages, and its teacher, the experts on a second Whisper with the same weights.

    Without a teacher it is the multilingual LoRA.

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
        self.compared = compared_layers(student.whisper, config) if self.with_layers else {}

    def run_student(self, embedded: Encoded, tokens: Tensor) -> HiddenStates:
        """Run the student on the input of encoder layer 1 and tokens (B, U)."""
        return self._run(self.student, embedded, tokens, [0] * len(tokens))

    @torch.no_grad()
    def run_teacher(self, embedded: Encoded, tokens: Tensor, experts: list[int]) -> HiddenStates:
        """Run each utterance's expert on the same speech, which may have less silence after it."""
        return self._run(self.teacher, embedded, tokens, experts)

    def _run(self, experts: LoRAExperts, embedded: Encoded, tokens: Tensor, index: list[int]) -> HiddenStates:
        whisper = experts.whisper
        layers = {name: getattr(whisper, part).layers[n - 1] for name, (part, n) in self.compared.items()}
        with experts.activate(index), whisper.record(layers) as states:
            last = whisper.decode(tokens, whisper.finish(embedded))
        return HiddenStates(states, last)

    def layer_losses(
        self, student: HiddenStates, teacher: HiddenStates, masks: Mapping[str, Tensor | None]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Compute sum and count of ``1 - cos`` of each compared layer over the valid positions.

        Args:
            student: its states; those of the encoder after the teacher's are of silence, and not compared.
            teacher: its states.
            masks: ``encoder`` and ``decoder`` -> True at valid positions, shape (B, T); None: all are.
        """
        losses = {}
        for name, (part, _) in self.compared.items():
            states, teacher_states = student.layers[name], teacher.layers[name]
            loss, mask = cosine_loss(states[:, : teacher_states.shape[1]], teacher_states), masks[part]
            mask = torch.ones_like(loss) if mask is None else mask.to(loss)
            losses[name] = (loss * mask).sum(), mask.sum()
        return losses


def compared_layers(whisper: Whisper, config: KDConfig) -> dict[str, tuple[str, int]]:
    """Return ``enc1``, ..., ``dec1``, ... -> part of the Whisper and number of each layer whose states are compared.

    Raises:
        ValueError: one does not exist.
    """
    compared = {}
    for part in ("encoder", "decoder"):
        count, numbers = len(getattr(whisper, part).layers), getattr(config, f"{part}_layers")
        numbers = range(1, count + 1) if numbers is None else numbers
        if wrong := [n for n in numbers if not 1 <= n <= count]:
            raise ValueError(f"expected layers from 1 to {count} in {part}_layers of kd_conf, got {wrong}")
        compared |= {f"{part[:3]}{n}": (part, n) for n in numbers}
    return compared


@torch.no_grad()
def init_from_average(student: LoRAExperts, experts: LoRAExperts) -> dict[str, float]:
    """Set a student to the average of the experts, ``dW = mean_i (alpha / r) B_i A_i``, truncated to its rank.

    Rows beyond the rank of the average keep random A and zero B.

    Args:
        student: one adapter on the linears of the experts.
        experts: to average.

    Returns:
        For each linear, the share of the average's energy that the student preserves.

    Raises:
        ValueError: the student does not have the experts' linears.
    """
    layers, expert_layers = student.layers, experts.layers
    if differ := sorted(set(layers) ^ set(expert_layers)):
        raise ValueError(
            f"expected a student on the linears of the experts, got {len(differ)} that differ, e.g. {differ[0]}: give "
            f"expert_conf the experts' targets {list(experts.config.targets)}"
        )
    shares = {}
    for name, layer in layers.items():
        a, b, shares[name] = truncate(*average_factors(expert_layers[name]), student.config.rank)
        layer.lora_A[STUDENT][: len(a)] = a
        layer.lora_B[STUDENT][:, : len(a)] = b * (expert_layers[name].scale / layer.scale)
    return shares


def average_factors(layer: ExpertLinear) -> tuple[Tensor, Tensor]:
    """Return A (E R, D_in) and B (D_out, E R) with ``B A = mean_i B_i A_i`` of the experts of a linear."""
    a, b = layer.stack_factors()
    return merge_delta(a.new_full((1, len(a)), 1 / len(a)), a, b)


def truncate(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Compute factors of the truncated SVD of ``B A``, the nearest matrix of that rank (Eckart-Young).

    Args:
        a: shape (R, D_in).
        b: shape (D_out, R).
        rank: of the result.

    Returns:
        A of shape (k, D_in) and B of shape (D_out, k) for ``k = min(rank, R, D_in, D_out)``, with the root of the
        singular values in each, and the share of the energy (squared Frobenius norm) that they preserve.
    """
    u, s, vh = svd_of_product(a, b)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root, float(energy_shares(s)[len(root) - 1])


def svd_of_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the SVD ``U S V^T`` of ``B A`` without forming that matrix.

    ``B = Q1 R1`` and ``A^T = Q2 R2`` make it ``Q1 (R1 R2^T) Q2^T``, whose SVD is that of the small core.

    Returns:
        U (D_out, K), S (K,) and V^T (K, D_in), of A (R, D_in) and B (D_out, R), for ``K = min(R, D_in, D_out)``.
    """
    q1, r1 = torch.linalg.qr(b)
    q2, r2 = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r1 @ r2.T, full_matrices=False)
    return q1 @ u, s, vh @ q2.T


def energy_shares(singular_values: Tensor) -> Tensor:
    """Return the share of the energy (squared Frobenius norm) in the first 1 .. k singular values, shape (k,)."""
    energy = singular_values.square().cumsum(0)
    return energy / energy[-1].clamp(min=torch.finfo(singular_values.dtype).tiny)

"""LoRA KD as ESPnet trains it: one student for all languages, with or without the experts as its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espnet_lole.espnet_model import IGNORE, AbsLoLEModel, text_then_language
from espnet_lole.lole.bank import ExpertBank
from espnet_lole.lole.kd import cosine_loss, taught_token_costs
from espnet_lole.train.distributed_mean import mean_over_ranks
from espnet_lole.whisper.model import Backbone, Encoded
from espnet_lole.whisper.tokenizer import WhisperTokens

STUDENT = "student"
"""The student's name in its bank and the folder of its adapter."""
KINDS = {"none": (False, False), "logits": (False, True), "layers": (True, False), "both": (True, True)}
"""Name of a distillation -> whether it has the layers' loss and that of the logits."""


@dataclass(frozen=True)
class DistillConfig:
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
        if self.kd not in KINDS or min(self.layer_weight, self.logit_weight, self.final_factor) < 0 or self.temperature <= 0:
            raise ValueError(f"expected kd of {sorted(KINDS)}, weights >= 0 and temperature > 0, got {self}")


@dataclass(frozen=True)
class Pass:
    """What a pass through backbone and adapters gives: each layer's states, the encoder's mask, the decoder's last states."""

    layers: list[Tensor]
    mask: Tensor | None
    states: Tensor


class ESPnetStudentModel(AbsLoLEModel):
    """One multilingual LoRA: mean cross-entropy of language, text and end + weighted losses of distillation.

    Args:
        backbone: the Whisper; on its linears the experts, and around them the student.
        languages: codes of the trained languages, in the order of their index.
        teacher: the experts of these languages; None without distillation.
        student: a bank of one adapter.
        tokens: the backbone's tokens.
        config: the losses.
        epochs: of the training, for the weights' schedule.

    Raises:
        ValueError: a layer to compare does not exist, or a distillation has no teacher.
    """

    def __init__(
        self,
        backbone: Backbone,
        languages: Sequence[str],
        teacher: ExpertBank | None,
        student: ExpertBank,
        tokens: WhisperTokens,
        config: DistillConfig,
        epochs: int,
    ) -> None:
        if teacher is None and config.kd != "none":
            raise ValueError(f"expected the experts for distill_conf kd: {config.kd}, got none: give --experts")
        super().__init__(backbone, languages, student.config, tokens)
        self.teacher, self.student, self.config, self.epochs = teacher, student, config, epochs
        self.with_layers, self.with_logits = KINDS[config.kd]
        self.schedule = 1.0
        self.names, self.compared = compared_layers(backbone, config)
        for layer in student.layers.values():
            layer.lora_A.requires_grad_(True)
            layer.lora_B.requires_grad_(True)

    def start_epoch(self, epoch: int) -> None:
        """Set the weights of the losses to their value in an epoch, counted from 1."""
        share = (epoch - 1) / max(self.epochs - 1, 1)
        self.schedule = 1.0 + share * (self.config.final_factor - 1.0)

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, lang: Tensor, **_: Any
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss of a batch; arguments and results as in ``ESPnetExpertModel.forward``."""
        language = lang[:, 0]
        inputs, targets = self.teacher_forcing(text, text_lengths, language)
        targets[:, 0] = inputs[:, 1]  # the student finds the language
        embedded = self.backbone.embed_speech(speech, speech_lengths)
        with self.student.routed(torch.zeros_like(language)):
            own = self.run(embedded, inputs)
        if self.with_layers or self.with_logits:
            with torch.no_grad(), self.teacher.routed(language):
                theirs = self.run(embedded, inputs)
        states, wanted = (text_then_language(values, targets) for values in (own.states, targets))
        taught = theirs.states[:, 1:][targets[:, 1:] != IGNORE] if self.with_logits else None
        parts = self.output_parts(states, wanted, taught, language)
        if self.with_layers:
            positions = torch.arange(inputs.shape[1], device=inputs.device) < text_lengths[:, None] + self.prompts.shape[1]
            parts |= self.layer_parts(own, theirs, positions)
        means = mean_over_ranks(parts, len(language))
        loss, _ = self.weigh(means.losses)
        total, of_layers = self.weigh(means.stats)
        cosines = {f"cos_{name}": 1.0 - means.stats.pop(f"cost_{name}") for name in self.names if self.with_layers}
        return loss, {"loss": total} | means.stats | of_layers | cosines, means.weight

    def weigh(self, of: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss from the means of its parts, and the mean of those of the layers, if any."""
        loss, of_layers = of["loss_asr"], {}
        if self.with_layers:
            of_layers["loss_layers"] = torch.stack([of[f"cost_{name}"] for name in self.names]).mean()
            loss = loss + self.schedule * self.config.layer_weight * of_layers["loss_layers"]
        if self.with_logits:
            loss = loss + self.schedule * self.config.logit_weight * of["loss_logits"]
        return loss, of_layers

    def run(self, embedded: Encoded, inputs: Tensor) -> Pass:
        """A pass through the layers, of the student or the teacher as the banks lead."""
        with self.backbone.recorded(self.compared if self.with_layers else []) as layers:
            states = self.backbone.decode(inputs, self.backbone.finish(embedded, 0))
        return Pass(layers, embedded.mask, states)

    def layer_parts(self, own: Pass, theirs: Pass, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and count of the loss of each layer, of the decoder's over its positions that are not padding, shape (B, U)."""
        layers = zip(self.names, own.layers, theirs.layers, strict=True)
        masks = {"enc": own.mask, "dec": positions}
        return {f"cost_{name}": cosine_loss(student, teacher, masks[name[:3]]) for name, student, teacher in layers}

    def output_parts(
        self, states: Tensor, wanted: Tensor, taught: Tensor | None, language: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and count of each loss of the outputs, and of the accuracies.

        Args:
            states: the student's at each target, those of the language last, shape (N, D).
            wanted: the targets, shape (N,).
            taught: the teacher's, which does not find the language, shape (N - B, D); None without distillation of the logits.
            language: index of each utterance's language, shape (B,).
        """
        if taught is None:
            costs, hits = self.backbone.token_costs(states, wanted)
            return self.prompt_parts(states, costs, hits, language)
        with self.backbone.autocast():
            weight = self.backbone.model.proj_out.weight
            costs, hits, divergences = taught_token_costs(states, taught, weight, wanted, self.config.temperature)
        parts = self.prompt_parts(states, costs, hits, language)
        return parts | {"loss_logits": (divergences.sum(), hits.new_tensor(len(taught)))}


def compared_layers(backbone: Backbone, config: DistillConfig) -> tuple[list[str], list[torch.nn.Module]]:
    """Names (``enc1``, ..., ``dec1``, ...) and modules of the layers whose states are compared.

    Raises:
        ValueError: one does not exist.
    """
    names, modules = [], []
    for part, layers, wanted in (
        ("enc", backbone.encoder.layers, config.encoder_layers),
        ("dec", backbone.decoder.layers, config.decoder_layers),
    ):
        numbers = range(1, len(layers) + 1) if wanted is None else wanted
        if wrong := [n for n in numbers if not 1 <= n <= len(layers)]:
            raise ValueError(f"expected layers from 1 to {len(layers)} in {part}oder_layers of distill_conf, got {wrong}")
        names += [f"{part}{n}" for n in numbers]
        modules += [layers[n - 1] for n in numbers]
    return names, modules

"""Full fine-tuning as ESPnet trains it: every weight of the Whisper learns, on all languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from espnet_lole.espnet_model import AbsLoLEModel, text_then_language
from espnet_lole.train.distributed_mean import mean_over_ranks
from espnet_lole.whisper.loss import token_costs
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens


class ESPnetFullModel(AbsLoLEModel):
    """A Whisper of which only the encoder's positions, a fixed table of sines, stay as they are.

    The loss is the mean cross-entropy of language, text and end; the language is found by Whisper's language token.

    Args:
        backbone: the Whisper.
        languages: codes of the trained languages, in the order of their index.
        tokens: its tokens.

    Raises:
        ValueError: the backbone keeps its matrices in less than float32, too coarse for the steps of a training.
    """

    def __init__(self, backbone: Backbone, languages: Sequence[str], tokens: WhisperTokens) -> None:
        if backbone.precision != torch.float32:
            raise ValueError(
                f"expected precision: float32 for full fine-tuning, got {backbone.precision}: its weights train; "
                "use_amp: true runs the products in less"
            )
        super().__init__(backbone, languages, None, tokens)
        backbone.model.requires_grad_(True)
        backbone.encoder.embed_positions.requires_grad_(False)

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, lang: Tensor, **_: Any
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss of a batch; arguments and results as in ``ESPnetExpertModel.forward``."""
        language = lang[:, 0]
        inputs, targets = self.teacher_forcing(text, text_lengths, language)
        targets[:, 0] = inputs[:, 1]  # the language is to be found
        states = self.backbone.decode(inputs, self.backbone.encode(speech, speech_lengths))
        states = text_then_language(states, targets)  # (N, D)
        costs, hits = token_costs(self.backbone.logits(states).float(), text_then_language(targets, targets))
        means = mean_over_ranks(self.prompt_parts(states, costs, hits, language), len(language))
        return means.losses["loss_asr"], {"loss": means.stats["loss_asr"]} | means.stats, means.weight

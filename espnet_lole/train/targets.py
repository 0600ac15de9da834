"""What the decoder reads and predicts in training: the prompts before the texts, and a label at each position."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -1
"""Marks padded text (ESPnet's collate function)."""


@dataclass(frozen=True)
class Targets:
    """What the decoder reads and predicts.

    Attributes:
        tokens: prompt, text and padding, shape (B, U).
        index: positions with a label in the flattened tokens, shape (N,).
        labels: token to predict at each of them, shape (N,).
        num_text: labels of text and end; those after them, if any, are the B utterances' language tokens.
        lengths: tokens of each utterance without padding, shape (B,).
        language: index of each utterance's language, shape (B,).
        experts: the same as a list, so that no later step waits for the GPU.
    """

    tokens: Tensor
    index: Tensor
    labels: Tensor
    num_text: int
    lengths: Tensor
    language: Tensor
    experts: list[int]

    def select(self, states: Tensor) -> Tensor:
        """Return the decoder's states (B, U, D) at the positions with a label, shape (N, D)."""
        return states.flatten(0, 1)[self.index]

    def with_language(self, language_tokens: Tensor) -> Targets:
        """Append each utterance's language token (B,) to the labels, predicted after the start of the prompt."""
        starts = torch.arange(len(self.tokens), device=self.tokens.device) * self.tokens.shape[1]
        return replace(self, index=torch.cat([self.index, starts]), labels=torch.cat([self.labels, language_tokens]))


def make_targets(prompts: Tensor, eot: int, text: Tensor, lengths: Tensor, language: Tensor) -> Targets:
    """Put the prompts before the texts: the decoder reads prompt and text, and predicts text and end.

    Args:
        prompts: of each language, shape (L, P).
        eot: token of the end.
        text: token ids, padded with ``IGNORE``, shape (B, U).
        lengths: of the texts, shape (B,).
        language: index of each utterance's language, shape (B,).
    """
    prompts = prompts[language]  # (B, P)
    tokens = torch.cat([prompts, text.masked_fill(text == IGNORE, eot)], dim=1)
    labels = F.pad(text, (0, 1), value=IGNORE).scatter(1, lengths[:, None], eot)  # (B, U + 1)
    labels = F.pad(labels, (prompts.shape[1] - 1, 0), value=IGNORE).flatten()
    index = (labels != IGNORE).nonzero()[:, 0]
    lengths = lengths + prompts.shape[1]
    return Targets(tokens, index, labels[index], len(index), lengths, language, language.tolist())

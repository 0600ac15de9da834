"""Statistics of earlier batches, from which MoLE's language classifier learns again."""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY_SIZE = 4096
"""Utterances of an epoch whose statistics the memory holds."""


class StatisticsMemory:
    """FIFO of pooled statistics from earlier batches (cross-batch memory, Wang et al., CVPR 2020).

    The MLP needs more steps than the fusion; the stored statistics are those of slightly older fusion weights.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all utterances."""
        self._seen = 0

    def add(self, statistics: Tensor, language: Tensor) -> None:
        """Store utterances: statistics (B, S) and the index of their language (B,)."""
        if not self._seen:
            self._statistics = statistics.new_empty(MEMORY_SIZE, statistics.shape[1])
            self._language = language.new_empty(MEMORY_SIZE)
        places = torch.arange(self._seen, self._seen + len(language), device=language.device) % MEMORY_SIZE
        self._statistics[places], self._language[places] = statistics.detach(), language
        self._seen += len(language)

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Draw statistics (N, S) and languages (N,) with replacement; the memory must not be empty."""
        rows = torch.randint(min(self._seen, MEMORY_SIZE), (number,), device=self._language.device)
        return self._statistics[rows], self._language[rows]

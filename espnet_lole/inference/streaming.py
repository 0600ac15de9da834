"""Recordings that are read, cut and transcribed as streams, so that hours of audio take no more memory than minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from espnet_lole.data.samples import AudioError
from espnet_lole.inference.batching import Audio
from espnet_lole.inference.results import Hypothesis
from espnet_lole.whisper.features import MAX_SAMPLES, SAMPLE_RATE

SECTION = 300 * SAMPLE_RATE
"""Samples in which pieces are searched at once."""


@dataclass
class Recording:
    """A recording whose pieces are transcribed while it is read.

    Attributes:
        id: its name.
        language: code of its language, or None if it is unknown.
        waiting: the pieces that were read and not transcribed yet.
        pieces: those that are transcribed, without their samples.
        hypotheses: their hypotheses.
        num_samples: length at 16 kHz, as far as it was read.
        error: why it cannot be read.
    """

    id: str
    language: str | None
    waiting: list[Audio] = field(default_factory=list)
    pieces: list[Audio] = field(default_factory=list)
    hypotheses: list[Hypothesis] = field(default_factory=list)
    num_samples: int = 0
    error: AudioError | None = None

    def read(self, blocks: Iterable[np.ndarray], cut: Callable[[Audio], list[Audio]]) -> Iterator[Audio]:
        """Cut the recording while it is read; the pieces are those that ``cut`` makes of the whole.

        An ``AudioError`` ends the recording and becomes its ``error``.

        Args:
            blocks: samples at 16 kHz, shape (S,).
            cut: cuts audio into pieces that do not depend on audio 31 s away.

        Yields:
            The pieces, which also wait for ``add``.
        """
        held, start = np.empty(0, dtype=np.float32), 0
        try:
            for block in blocks:
                self.num_samples += len(block)
                held = np.concatenate([held, block])
                if len(held) < SECTION:
                    continue
                certain = start + len(held) - MAX_SAMPLES - SAMPLE_RATE  # pieces that end before it will not change
                pieces = cut(self._audio(held, start))
                yield from self._wait(piece for piece in pieces if piece.stop <= certain)
                rest = next((piece.start for piece in pieces if piece.stop > certain), certain)
                held, start = held[rest - start :].copy(), rest
            yield from self._wait(cut(self._audio(held, start)))
        except AudioError as error:
            self.error, self.waiting = error, []

    def _wait(self, pieces: Iterable[Audio]) -> Iterator[Audio]:
        """Let pieces wait to be transcribed."""
        for piece in pieces:
            self.waiting.append(piece)
            yield piece

    def _audio(self, samples: np.ndarray, start: int) -> Audio:
        """Describe samples that begin at a sample of the recording."""
        return Audio(
            self.id, self.language, start, start + len(samples),
            lambda first, end: torch.from_numpy(samples[first - start : end - start]),
        )  # fmt: skip

    def add(self, hypotheses: Iterable[Hypothesis]) -> None:
        """Add the hypotheses of the waiting pieces, and release their samples."""
        self.hypotheses += hypotheses
        self.pieces += [replace(piece, read=None) for piece in self.waiting]
        self.waiting = []

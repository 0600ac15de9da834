"""Recordings of any length: split at silences into pieces that Whisper takes, and joined again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from espnet_lole.inference.results import Hypothesis
from espnet_lole.whisper.features import HOP, MIN_SAMPLES

PAUSE = 30
"""Frames of 10 ms over which the power is averaged, long enough to prefer pauses to closures of stop consonants."""
SEARCHED = 0.5
"""The share of the longest piece, at its end, in which a cut is placed."""


def split(speech: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """Split a recording at the quietest place of the last half of each longest piece.

    Args:
        speech: samples at 16 kHz, shape (S,).
        longest: maximum number of samples of a piece.

    Returns:
        First sample and end of each piece; together they cover the recording, and each has 25 ms or more.
    """
    power, spans, start = _smooth_power(speech), [], 0
    while len(speech) - start > longest:
        first = start + int(SEARCHED * longest)
        last = min(start + longest, len(speech) - MIN_SAMPLES)
        cut = _quietest(power, first // HOP, last // HOP) * HOP
        spans.append((start, cut))
        start = cut
    return [*spans, (start, len(speech))]


def _smooth_power(speech: np.ndarray) -> np.ndarray:
    """Average the power around each multiple of 10 ms, shape (F,)."""
    frames = len(speech) // HOP
    power = (speech[: frames * HOP].reshape(frames, HOP).astype(np.float64) ** 2).mean(1)  # (F,)
    total = np.concatenate([[0.0], power.cumsum()])
    edges = np.arange(frames)
    low, high = np.maximum(edges - PAUSE // 2, 0), np.minimum(edges + PAUSE // 2, frames)
    return (total[high] - total[low]) / (high - low)


def _quietest(power: np.ndarray, first: int, last: int) -> int:
    """Find the quietest frame of ``first .. last``; in an even silence, its middle."""
    searched = power[first : last + 1]
    quiet = np.flatnonzero(searched <= searched.min() * (1 + 1e-6) + 1e-12)
    runs = np.split(quiet, np.flatnonzero(np.diff(quiet) > 1) + 1)
    longest = max(runs, key=len)
    return first + int(longest[len(longest) // 2])


def join(pieces: Sequence[Hypothesis], num_samples: Sequence[int]) -> Hypothesis:
    """Join the hypotheses of a recording's pieces.

    The language is the one spoken longest, posteriors are averaged over time, the score is averaged over tokens.

    Args:
        pieces: in order, at least one.
        num_samples: length of each.
    """
    if len(pieces) == 1:
        return pieces[0]
    lengths = [len(piece.tokens) + 1 for piece in pieces]  # with the end token
    spoken = Counter[str]()
    for piece, samples in zip(pieces, num_samples, strict=True):
        spoken[piece.language] += samples
    posteriors = None
    if pieces[0].posteriors is not None:
        shares = np.array(num_samples) / sum(num_samples)
        mean = shares @ np.array([list(piece.posteriors.values()) for piece in pieces])
        posteriors = dict(zip(pieces[0].posteriors, mean.tolist(), strict=True))
    return Hypothesis(
        tokens=[token for piece in pieces for token in piece.tokens],
        score=sum(n * piece.score for n, piece in zip(lengths, pieces, strict=True)) / sum(lengths),
        looped=any(piece.looped for piece in pieces),
        language=max(spoken, key=spoken.get),
        posteriors=posteriors,
        decode_seconds=sum(piece.decode_seconds for piece in pieces),
    )

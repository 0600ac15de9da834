"""Audio of any length: cut at silences into pieces that Whisper takes, batched, and joined again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from espnet_lole.inference.search import Hypothesis
from espnet_lole.inference.transcriber import Transcription
from espnet_lole.whisper.features import HOP, MAX_SAMPLES, MIN_SAMPLES, SAMPLE_RATE

PAUSE = 30
"""Frames of 10 ms over which loudness is averaged: the quietest place is the middle of a pause, not a stop consonant."""
SEARCHED = 0.5
"""A cut is looked for in this last part of the longest piece."""


def split(speech: np.ndarray, longest: int = MAX_SAMPLES) -> list[tuple[int, int]]:
    """Where to cut: spans that cover all samples, each cut at the quietest place of the last half of the longest span.

    Args:
        speech: samples at 16 kHz, shape (S,).
        longest: samples of a span, at most.

    Returns:
        First sample and the one behind the last of each span; none if the audio is shorter than Whisper takes (25 ms).

    Raises:
        ValueError: the longest span is not of 1 to 30 s.
    """
    if not SAMPLE_RATE <= longest <= MAX_SAMPLES:
        raise ValueError(f"expected pieces of 1 to 30 s at most, got {longest / SAMPLE_RATE:g} s")
    if len(speech) < MIN_SAMPLES:
        return []
    loudness = _loudness(speech) if len(speech) > longest else np.empty(0)
    spans, start = [], 0
    while len(speech) - start > longest:
        first = start + int(SEARCHED * longest)
        last = min(start + longest, len(speech) - MIN_SAMPLES)
        cut = _quietest(loudness, first // HOP, last // HOP) * HOP
        spans.append((start, cut))
        start = cut
    return [*spans, (start, len(speech))]


def _loudness(speech: np.ndarray) -> np.ndarray:
    """Mean power around each multiple of 10 ms, shape (F,)."""
    frames = len(speech) // HOP
    power = (speech[: frames * HOP].reshape(frames, HOP).astype(np.float64) ** 2).mean(1)  # (F,)
    total = np.concatenate([[0.0], power.cumsum()])
    edges = np.arange(frames)
    low, high = np.maximum(edges - PAUSE // 2, 0), np.minimum(edges + PAUSE // 2, frames)
    return (total[high] - total[low]) / (high - low)


def _quietest(loudness: np.ndarray, first: int, last: int) -> int:
    """The quietest frame of ``first .. last``; of an even silence, its middle."""
    searched = loudness[first : last + 1]
    quiet = np.flatnonzero(searched <= searched.min() * (1 + 1e-6) + 1e-12)
    run = np.split(quiet, np.flatnonzero(np.diff(quiet) > 1) + 1)
    longest = max(run, key=len)
    return first + int(longest[len(longest) // 2])


def make_batches(samples: Sequence[int], seconds: float) -> list[list[int]]:
    """Indices of utterances in batches of similar length, the longest first, of at most ``seconds`` of audio with padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(samples)), key=lambda i: -samples[i]):
        if not batches or (len(batches[-1]) + 1) * samples[batches[-1][0]] > seconds * SAMPLE_RATE:
            batches.append([])
        batches[-1].append(i)
    return batches


def join(pieces: Sequence[Transcription], samples: Sequence[int]) -> Transcription:
    """What was said in all pieces of a recording.

    The language is the one spoken longest, the posteriors are means over time, the score is that of the mean token.

    Args:
        pieces: in their order, at least one.
        samples: length of each.
    """
    if len(pieces) == 1:
        return pieces[0]
    lengths = [len(p.hypothesis.tokens) + 1 for p in pieces]  # the end token counted
    score = sum(n * p.hypothesis.score for n, p in zip(lengths, pieces, strict=True)) / sum(lengths)
    spoken: dict[str, int] = {}
    for piece, size in zip(pieces, samples, strict=True):
        spoken[piece.lang] = spoken.get(piece.lang, 0) + size
    posteriors = None
    if pieces[0].posteriors is not None:
        shares = np.array(samples) / sum(samples)
        mean = shares @ np.array([list(p.posteriors.values()) for p in pieces])
        posteriors = dict(zip(pieces[0].posteriors, mean.tolist(), strict=True))
    tokens = [token for piece in pieces for token in piece.hypothesis.tokens]
    looped = any(piece.hypothesis.looped for piece in pieces)
    return Transcription(Hypothesis(tokens, score, looped), max(spoken, key=spoken.get), posteriors)

"""The decoding loop of all users: audio is sorted by length, batched, loaded, padded and transcribed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_lole.inference.longform import split
from espnet_lole.inference.results import Hypothesis
from espnet_lole.inference.speech_detector import SpeechDetector
from espnet_lole.inference.transcriber import Transcriber
from espnet_lole.whisper.features import MAX_SAMPLES, MIN_SAMPLES, SAMPLE_RATE
from espnet_lole.whisper.model import Whisper


@dataclass(frozen=True)
class Audio:
    """A recording, or a piece of one.

    Attributes:
        id: name of the utterance or recording.
        language: its code, or None if it is unknown.
        start: first sample, at 16 kHz.
        stop: end, in samples.
        read: returns the recording's samples from a start to an end, in [-1, 1], shape (S,).
    """

    id: str
    language: str | None
    start: int
    stop: int
    read: Callable[[int, int], Tensor]

    @property
    def num_samples(self) -> int:
        """Length in samples."""
        return self.stop - self.start

    def load(self) -> Tensor:
        """Read the samples, shape (S,)."""
        return self.read(self.start, self.stop)

    def pieces(self, longest: int = MAX_SAMPLES, detector: SpeechDetector | None = None) -> list[Audio]:
        """Split at silences into pieces; there are none if it is shorter than 25 ms or has no speech.

        Args:
            longest: maximum number of samples of a piece.
            detector: finds the speech; None: everything is speech.

        Raises:
            ValueError: ``longest`` is not 1 to 30 s.
        """
        if not SAMPLE_RATE <= longest <= MAX_SAMPLES:
            raise ValueError(f"pieces of 1 to 30 s at most can be transcribed, got {longest / SAMPLE_RATE:g} s")
        if self.num_samples < MIN_SAMPLES:
            return []
        if detector is None and self.num_samples <= longest:
            return [self]
        samples, first = self.load().numpy(), self.start
        spans = [(0, len(samples))] if detector is None else detector.spans(samples)
        return [
            replace(self, start=first + speech + start, stop=first + speech + stop)
            for speech, end in spans
            for start, stop in split(samples[speech:end], longest)
        ]


def transcribe(
    transcriber: Transcriber,
    recordings: Sequence[Sequence[Audio]],
    batch_seconds: float,
    progress: Callable[[float], object] | None = None,
) -> list[list[Hypothesis]]:
    """Transcribe recordings in batches of pieces of similar length; known and unknown languages are batched separately.

    Args:
        transcriber: the system.
        recordings: the pieces of each, 25 ms to 30 s long.
        batch_seconds: audio of a batch, padding included.
        progress: called with the seconds of audio of each finished batch.

    Returns:
        The hypotheses of each recording's pieces.

    Raises:
        ValueError: see ``Transcriber``.
    """
    audio = [piece for pieces in recordings for piece in pieces]
    hypotheses: dict[int, Hypothesis] = {}
    for known in (True, False):
        indices = [i for i, piece in enumerate(audio) if (piece.language is not None) == known]
        started = time.perf_counter()
        for rows, speech, lengths in load_batches([audio[i] for i in indices], transcriber.whisper, batch_seconds):
            batch = [indices[row] for row in rows]
            outputs = transcriber(speech, lengths, [audio[i].language for i in batch] if known else None)
            seconds, samples = time.perf_counter() - started, sum(audio[i].num_samples for i in batch)
            for i, hypothesis in zip(batch, outputs, strict=True):
                hypotheses[i] = replace(hypothesis, decode_seconds=seconds * audio[i].num_samples / samples)
            if progress is not None:
                progress(samples / SAMPLE_RATE)
            started = time.perf_counter()
    numbers = iter(range(len(audio)))
    return [[hypotheses[next(numbers)] for _ in pieces] for pieces in recordings]


def load_batches(
    audio: Sequence[Audio], whisper: Whisper, batch_seconds: float
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Load and pad audio, a batch at a time, the longest first.

    Args:
        audio: utterances or pieces of 25 ms to 30 s, in any order.
        whisper: the model; its padding counts in a batch, and its device gets the samples.
        batch_seconds: audio of a batch, padding included.

    Yields:
        Indices of the audio, samples (B, S) and lengths (B,).
    """
    for rows in make_batches([whisper.input_samples(piece.num_samples) for piece in audio], batch_seconds):
        yield rows, *pad_speech([audio[row].load() for row in rows], whisper)


def make_batches(num_samples: Sequence[int], batch_seconds: float) -> list[list[int]]:
    """Group utterances of similar length, the longest first, into batches of at most ``batch_seconds`` with padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(num_samples)), key=lambda i: -num_samples[i]):
        if not batches or (len(batches[-1]) + 1) * num_samples[batches[-1][0]] > batch_seconds * SAMPLE_RATE:
            batches.append([])
        batches[-1].append(i)
    return batches


def pad_speech(speech: Sequence[Tensor], whisper: Whisper) -> tuple[Tensor, Tensor]:
    """Pad utterances of shape (S,) to a batch on the model's device: samples (B, S), lengths (B,)."""
    lengths = torch.tensor([len(s) for s in speech], device=whisper.device)
    return pad_sequence(list(speech), batch_first=True).to(whisper.device), lengths

"""A trained system in Python: one utterance in ESPnet's form, or many recordings of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from espnet_lole.data.audio import read_file, resample
from espnet_lole.inference.batching import Audio, transcribe
from espnet_lole.inference.load import SystemFolder, find_system, load_transcriber, read_decoding_config
from espnet_lole.inference.longform import join
from espnet_lole.inference.results import Hypothesis, Result, Segment
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.timestamps import split_at_timestamps
from espnet_lole.inference.transcriber import Transcriber
from espnet_lole.lole.mole import RoutingConfig
from espnet_lole.whisper.features import MAX_SAMPLES, SAMPLE_RATE

Speech = np.ndarray | Tensor
Input = str | PathLike | BinaryIO | Speech | tuple[Speech, int]
"""A file by its path or opened; samples at 16 kHz, shape (S,) or (S, channels); or samples and their rate."""

READ_AHEAD = 8
"""Batches of audio that are read before they are sorted by length."""


class Speech2Text:
    """A trained system: language experts, MoLE, a student or a whole Whisper, loaded when it is first used.

    Args:
        system: the folder of the system.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        batch_seconds: audio of a batch, padding included.
        search: options of the search.
        routing: how MoLE routes utterances of unknown language.
    """

    def __init__(
        self,
        system: SystemFolder,
        device: str = "cpu",
        batch_seconds: float = 160.0,
        search: SearchConfig | None = None,
        routing: RoutingConfig | None = None,
    ) -> None:
        self.system, self.device, self.batch_seconds = system, device, batch_seconds
        self.search, self.routing = search or SearchConfig(), routing or RoutingConfig()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike,
        backbone: str | None = None,
        languages: Sequence[str] | None = None,
        device: str | None = None,
        config: str | PathLike | None = None,
        timestamps: bool = False,
    ) -> Speech2Text:
        """Find the system in a folder.

        Args:
            folder: a training, an exported system, ``peft`` adapters, or a Whisper of ``transformers``.
            backbone: folder or hub name of the Whisper; default: that of the training.
            languages: codes of the languages to choose from; default: those of the training. MoLE always has these.
            device: ``cpu``, ``cuda`` or ``cuda:N``; default: a GPU if there is one.
            config: YAML of the decoding, such as ``conf/decode.yaml``.
            timestamps: cut segments at Whisper's timestamp tokens, whatever the YAML says; the backbone must know them.

        Raises:
            FileNotFoundError: the folder or a part of the system is missing.
            ValueError: the folder holds no system, the YAML has an unknown key, or it allows too few tokens.
        """
        system = find_system(Path(folder), backbone, languages)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        batch_seconds, search, routing = read_decoding_config(None if config is None else Path(config))
        return cls(system, device, batch_seconds, replace(search, timestamps=timestamps or search.timestamps), routing)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the system transcribes."""
        return self.system.languages

    @cached_property
    def transcriber(self) -> Transcriber:
        """The loaded system."""
        return load_transcriber(self.system, self.device, self.search, self.routing)

    def __call__(self, speech: Speech, lang: str | None = None) -> list[tuple[str, list[str], list[int], Hypothesis]]:
        """Transcribe one utterance; the result has the form of ESPnet's ``Speech2Text``.

        Args:
            speech: samples at 16 kHz in [-1, 1], shape (S,); any length.
            lang: code of its language; None: the system finds it.

        Returns:
            The best hypothesis as (text, tokens, token ids, hypothesis); none if the audio is under 25 ms.

        Raises:
            ValueError: the language is unknown, or the system needs one.
        """
        pieces = _recording("", load_speech(speech), lang).pieces()
        if not pieces:
            return []
        (hypotheses,) = transcribe(self.transcriber, [pieces], self.batch_seconds)
        best, tokenizer = join(hypotheses, [piece.num_samples for piece in pieces]), self.transcriber.tokenizer
        return [(tokenizer.decode(best.tokens), tokenizer.pieces(best.tokens), best.tokens, best)]

    def transcribe(
        self,
        inputs: Input | Iterable[Input],
        langs: str | Iterable[str | None] | None = None,
        max_segment: float = MAX_SAMPLES / SAMPLE_RATE,
        progress: Callable[[float], object] | None = None,
    ) -> Iterator[Result]:
        """Transcribe recordings of any length, rate and language, in batches sorted by length.

        Args:
            inputs: one or many; an iterator is read a few batches ahead.
            langs: language of all, or of each (None: the system finds it).
            max_segment: maximum length of a segment in seconds, 1 to 30; recordings are split at silences.
            progress: called with the seconds of audio of each finished batch.

        Yields:
            The result of each input, in their order.

        Raises:
            AudioError: an input cannot be read.
            ValueError: a language is unknown or missing, or the numbers of languages and inputs differ.
        """
        longest = round(max_segment * SAMPLE_RATE)
        ahead: list[Audio] = []
        for number, (item, lang) in enumerate(_pairs(inputs, langs)):
            ahead.append(_recording(_name(item, number), load_speech(item), lang))
            if sum(recording.num_samples for recording in ahead) >= READ_AHEAD * self.batch_seconds * SAMPLE_RATE:
                yield from self._results(ahead, longest, progress)
                ahead = []
        if ahead:
            yield from self._results(ahead, longest, progress)

    def _results(
        self, recordings: Sequence[Audio], longest: int, progress: Callable[[float], object] | None
    ) -> Iterator[Result]:
        """Transcribe recordings that are batched together."""
        pieces = [recording.pieces(longest) for recording in recordings]
        hypotheses = transcribe(self.transcriber, pieces, self.batch_seconds, progress)
        yield from map(self._result, recordings, pieces, hypotheses)

    def _result(self, recording: Audio, pieces: Sequence[Audio], hypotheses: Sequence[Hypothesis]) -> Result:
        """Join the hypotheses of a recording's pieces."""
        duration = recording.num_samples / SAMPLE_RATE
        if not pieces:
            return Result(recording.id, "", recording.language, None, None, 0.0, duration, 0.0, [], [])
        best, tokenizer = join(hypotheses, [piece.num_samples for piece in pieces]), self.transcriber.tokenizer
        segments = []
        for piece, hypothesis in zip(pieces, hypotheses, strict=True):
            offset, seconds = piece.start / SAMPLE_RATE, piece.num_samples / SAMPLE_RATE
            for start, end, ids in split_at_timestamps(hypothesis.tokens, seconds, tokenizer):
                segments.append(Segment(offset + start, offset + end, tokenizer.decode(ids), hypothesis.language))
        return Result(
            recording.id, tokenizer.decode(best.tokens), best.language, best.posteriors, best.confidence, best.score,
            duration, best.decode_seconds, best.tokens, segments,
        )  # fmt: skip


def load_speech(item: Input) -> np.ndarray:
    """Read any input as float32 samples at 16 kHz, mono, shape (S,).

    Raises:
        AudioError: a file cannot be read.
        ValueError: the samples are not numbers of shape (S,) or (S, channels).
    """
    if isinstance(item, str | PathLike):
        item = read_file(fspath(item))
    elif hasattr(item, "read"):
        item = read_file(item)
    speech, rate = item if isinstance(item, tuple) else (item, SAMPLE_RATE)
    samples = np.asarray(speech)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "if":
        raise ValueError(
            f"expected samples of shape (S,) or (S, channels), got {samples.dtype} of shape {samples.shape}"
        )
    if samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    samples = samples.astype(np.float32)
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    return np.ascontiguousarray(mono) if rate == SAMPLE_RATE else resample(mono, rate)


def _pairs(
    inputs: Input | Iterable[Input], langs: str | Iterable[str | None] | None
) -> Iterator[tuple[Input, str | None]]:
    """Pair each input with its language."""
    rated = isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[1], int)
    if rated or isinstance(inputs, str | PathLike | np.ndarray | Tensor) or hasattr(inputs, "read"):
        inputs = [inputs]
    if langs is None or isinstance(langs, str):
        yield from ((item, langs) for item in inputs)
        return
    missing = object()
    for number, (item, lang) in enumerate(zip_longest(inputs, langs, fillvalue=missing)):
        if item is missing or lang is missing:
            what = "more languages than inputs" if item is missing else "fewer"
            raise ValueError(
                f"expected a language for each input, got {what} after {number}: give one for all, or one for each"
            )
        yield item, lang


def _name(item: Input, number: int) -> str:
    """Name an input: its path, or its position."""
    return fspath(item) if isinstance(item, str | PathLike) else getattr(item, "name", None) or str(number)


def _recording(name: str, samples: np.ndarray, lang: str | None) -> Audio:
    """Make a recording of samples in memory, shape (S,)."""
    return Audio(name, lang, 0, len(samples), lambda start, stop: torch.from_numpy(samples[start:stop]))

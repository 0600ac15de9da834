"""A trained system in Python: one utterance in ESPnet's form, or many recordings of any length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from espnet_lole.data.audio import read_file, resample
from espnet_lole.inference.longform import join, make_batches, split
from espnet_lole.inference.results import Result, Segment
from espnet_lole.inference.search import Hypothesis, SearchConfig
from espnet_lole.inference.system import System, find_system, load_system, read_decoding
from espnet_lole.inference.timestamps import cut_at_times
from espnet_lole.inference.transcriber import Transcriber, Transcription
from espnet_lole.lole.routing import RoutingConfig
from espnet_lole.whisper.features import MAX_SAMPLES, SAMPLE_RATE

Speech = np.ndarray | Tensor
Input = str | PathLike | BinaryIO | Speech | tuple[Speech, int]
"""A file by its path or opened; samples at 16 kHz, shape (S,) or (S, channels); or samples and their rate."""

READ_AHEAD = 8
"""Batches of audio that are read before they are sorted by length."""


class Speech2Text:
    """Language experts, MoLE, a student or a whole Whisper; the weights are loaded when they are first needed.

    Args:
        system: what to load.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        batch_seconds: audio of a batch, padding included.
        search: how to search.
        routing: how MoLE routes utterances of unknown language.
    """

    def __init__(
        self,
        system: System,
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
        """The system in a folder.

        Args:
            folder: of an experiment of the recipe (experts, MoLE or a student), an exported system, ``peft`` adapters, or a
                Whisper of ``transformers`` such as a merged student.
            backbone: folder or hub name of the Whisper; default: that of the training.
            languages: to choose from; default: those of the training. MoLE always has those of its training.
            device: ``cpu``, ``cuda`` or ``cuda:N``; default: a GPU if there is one.
            config: YAML of the decoding, as ``conf/decode.yaml``.
            timestamps: cut segments at Whisper's tokens of time, whatever the YAML says; the backbone must know them.

        Raises:
            FileNotFoundError: the folder or a part of the system is missing.
            ValueError: the folder holds no system, or the decoding's YAML has an unknown key or leaves no
                room for timestamps.
        """
        system = find_system(Path(folder), backbone, languages)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        seconds, search, routing = read_decoding(None if config is None else Path(config))
        return cls(system, device, seconds, replace(search, timestamps=True) if timestamps else search, routing)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the system transcribes."""
        return self.system.languages

    @cached_property
    def transcriber(self) -> Transcriber:
        """The loaded system."""
        return load_system(self.system, self.device, self.search, self.routing)

    def __call__(self, speech: Speech, lang: str | None = None) -> list[tuple[str, list[str], list[int], Hypothesis]]:
        """Transcribe one utterance; the result has the form of ESPnet's ``Speech2Text``.

        Args:
            speech: samples at 16 kHz in [-1, 1], shape (S,); any length.
            lang: its language; None: the system finds it.

        Returns:
            The best hypothesis as (text, tokens, token ids, hypothesis); none if the audio is under 25 ms.

        Raises:
            ValueError: the language is unknown, or the system needs one.
        """
        samples = load_speech(speech)
        spans = split(samples)
        found = self._run([samples[a:b] for a, b in spans], [lang] * len(spans))
        if not found:
            return []
        whole = join([transcription for transcription, _ in found], [b - a for a, b in spans])
        ids, tokens = whole.hypothesis.tokens, self.transcriber.tokens
        return [(tokens.decode(ids), tokens.pieces(ids), ids, whole.hypothesis)]

    def transcribe(
        self,
        inputs: Input | Iterable[Input],
        langs: str | Iterable[str | None] | None = None,
        max_segment: float = MAX_SAMPLES / SAMPLE_RATE,
        progress: Callable[[float], object] | None = None,
    ) -> Iterator[Result]:
        """Transcribe recordings of any length, rate and language, in batches sorted by length; results come in order.

        Args:
            inputs: one or many; an iterator is read a few batches ahead.
            langs: language of all, or of each (None: the system finds it).
            max_segment: seconds of a segment at most, 1 to 30; recordings are cut at silences to that.
            progress: called with the seconds of audio of each batch when it is done.

        Yields:
            The result of each input.

        Raises:
            AudioError: an input cannot be read.
            ValueError: a language is unknown or missing, or there are not as many languages as inputs.
        """
        ahead: list[_Recording] = []
        for number, (item, lang) in enumerate(_pairs(inputs, langs)):
            samples = load_speech(item)
            ahead.append(_Recording(_name(item, number), samples, lang, split(samples, round(max_segment * SAMPLE_RATE))))
            if sum(len(r.samples) for r in ahead) >= READ_AHEAD * self.batch_seconds * SAMPLE_RATE:
                yield from self._results(ahead, progress)
                ahead = []
        yield from self._results(ahead, progress)

    def _results(self, recordings: list[_Recording], progress: Callable[[float], object] | None) -> Iterator[Result]:
        """The results of recordings that are batched together."""
        speech = [r.samples[a:b] for r in recordings for a, b in r.spans]
        found = iter(self._run(speech, [r.lang for r in recordings for _ in r.spans], progress))
        for recording in recordings:
            yield self._result(recording, [next(found) for _ in recording.spans])

    def _result(self, recording: _Recording, found: list[tuple[Transcription, float]]) -> Result:
        duration = len(recording.samples) / SAMPLE_RATE
        if not found:
            return Result(recording.name, "", recording.lang, None, None, 0.0, duration, 0.0, [], [])
        pieces, tokens = [transcription for transcription, _ in found], self.transcriber.tokens
        whole = join(pieces, [b - a for a, b in recording.spans])
        segments = [
            Segment(a / SAMPLE_RATE + timed.start, a / SAMPLE_RATE + timed.end, tokens.decode(timed.tokens), piece.lang)
            for (a, b), piece in zip(recording.spans, pieces, strict=True)
            for timed in cut_at_times(piece.hypothesis.tokens, (b - a) / SAMPLE_RATE, tokens)
        ]
        ids, took = whole.hypothesis.tokens, sum(seconds for _, seconds in found)
        return Result(
            recording.name, tokens.decode(ids), whole.lang, whole.posteriors, whole.confidence, whole.hypothesis.score, duration,
            took, ids, segments,
        )  # fmt: skip

    def _run(
        self, speech: Sequence[np.ndarray], langs: Sequence[str | None], progress: Callable[[float], object] | None = None
    ) -> list[tuple[Transcription, float]]:
        """What was said in each piece, and the seconds that it took; those of known language go in other batches."""
        found: dict[int, tuple[Transcription, float]] = {}
        for told in (True, False):
            rows = [row for row, lang in enumerate(langs) if (lang is not None) == told]
            transcriber = self.transcriber if rows else None  # loading it is not the first batch's work
            sizes = [transcriber.backbone.input_samples(len(speech[row])) for row in rows]
            for batch in make_batches(sizes, self.batch_seconds):
                chosen, started = [rows[i] for i in batch], time.perf_counter()
                said = transcriber([torch.from_numpy(speech[i]) for i in chosen], [langs[i] for i in chosen] if told else None)
                samples = sum(len(speech[i]) for i in chosen)
                each = (time.perf_counter() - started) / samples
                found |= {i: (t, each * len(speech[i])) for i, t in zip(chosen, said, strict=True)}
                if progress is not None:
                    progress(samples / SAMPLE_RATE)
        return [found[row] for row in range(len(speech))]


@dataclass(frozen=True)
class _Recording:
    """An input that was read, and where it is cut."""

    name: str
    samples: np.ndarray
    lang: str | None
    spans: list[tuple[int, int]]


def load_speech(item: Input) -> np.ndarray:
    """Any input as float32 samples at 16 kHz, mono, shape (S,).

    Raises:
        AudioError: a file cannot be read.
        ValueError: samples of another form than numbers of shape (S,) or (S, channels).
    """
    if isinstance(item, str | PathLike):
        item = read_file(fspath(item))
    elif hasattr(item, "read"):
        item = read_file(item)
    speech, rate = item if isinstance(item, tuple) else (item, SAMPLE_RATE)
    samples = np.asarray(speech)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "if":
        raise ValueError(f"expected samples of shape (S,) or (S, channels), got {samples.dtype} of shape {samples.shape}")
    if samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    samples = samples.astype(np.float32)
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    return np.ascontiguousarray(mono) if rate == SAMPLE_RATE else resample(mono, rate)


def _pairs(inputs: Input | Iterable[Input], langs: str | Iterable[str | None] | None) -> Iterator[tuple[Input, str | None]]:
    """Each input with its language."""
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
            raise ValueError(f"expected a language for each input, got {what} after {number}: give one for all, or one for each")
        yield item, lang


def _name(item: Input, number: int) -> str:
    return fspath(item) if isinstance(item, str | PathLike) else getattr(item, "name", None) or str(number)

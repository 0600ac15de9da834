"""A trained system in Python: one utterance in ESPnet's form, or many recordings of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import zip_longest
from os import PathLike
from pathlib import Path

import torch

from espnet_lole.data.inputs import Input, as_inputs, name_input, read_input
from espnet_lole.data.samples import AudioError
from espnet_lole.inference.batching import Audio, transcribe
from espnet_lole.inference.load import SystemFolder, find_system, load_transcriber, read_decoding_config
from espnet_lole.inference.longform import join
from espnet_lole.inference.results import Hypothesis, Result, Segment
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.speech_detector import SpeechDetector, VadConfig
from espnet_lole.inference.streaming import Recording
from espnet_lole.inference.timestamps import split_at_timestamps
from espnet_lole.inference.transcriber import Transcriber
from espnet_lole.lole.mole import RoutingConfig
from espnet_lole.whisper.features import MAX_SAMPLES, SAMPLE_RATE

READ_AHEAD = 8
"""Batches of audio that are read before their pieces are sorted by length."""


class Speech2Text:
    """A trained system: language experts, MoLE, a student or a whole Whisper, loaded when it is first used.

    Args:
        system: the folder of the system.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        batch_seconds: audio of a batch, padding included.
        search: options of the search.
        routing: how MoLE routes utterances of unknown language.
        vad: options of the speech detector.
    """

    def __init__(
        self,
        system: SystemFolder,
        device: str = "cpu",
        batch_seconds: float = 160.0,
        search: SearchConfig | None = None,
        routing: RoutingConfig | None = None,
        vad: VadConfig | None = None,
    ) -> None:
        self.system, self.device, self.batch_seconds = system, device, batch_seconds
        self.search, self.routing = search or SearchConfig(), routing or RoutingConfig()
        self.vad = vad or VadConfig()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike,
        backbone: str | None = None,
        languages: Sequence[str] | None = None,
        device: str | None = None,
        config: str | PathLike | None = None,
        timestamps: bool = False,
        vad_threshold: float | None = None,
    ) -> Speech2Text:
        """Find the system in a folder.

        Args:
            folder: a training, an exported system, ``peft`` adapters, or a Whisper of ``transformers``.
            backbone: folder or hub name of the Whisper; default: that of the training.
            languages: codes of the languages to choose from; default: those of the training.
            device: ``cpu``, ``cuda`` or ``cuda:N``; default: a GPU if there is one.
            config: YAML of the decoding, such as ``conf/decode.yaml``; default: the options that the system was
                scored with, where it was scored.
            timestamps: cut segments at Whisper's timestamp tokens, whatever the YAML says; the backbone must know them.
            vad_threshold: probability from which audio is speech, whatever the YAML says; 0: transcribe everything.

        Raises:
            FileNotFoundError: the folder or a part of the system is missing.
            ValueError: the folder holds no system, the YAML has an unknown key, or it allows too few tokens.
        """
        system = find_system(Path(folder), backbone, languages)
        device = find_device(device)
        options = {"timestamps": True} if timestamps else {}
        if vad_threshold is not None:
            options["vad"] = {"threshold": float(vad_threshold)}
        file = system.scored_decoding if config is None else Path(config)
        return cls(system, device, *read_decoding_config(file, options))

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the system transcribes."""
        return self.system.choices or self.system.languages

    @cached_property
    def transcriber(self) -> Transcriber:
        """The loaded system."""
        return load_transcriber(self.system, self.device, self.search, self.routing)

    @cached_property
    def detector(self) -> SpeechDetector | None:
        """The speech detector, or None: everything is transcribed."""
        return SpeechDetector(self.vad) if self.vad.threshold else None

    def __call__(self, speech: Input, lang: str | None = None) -> list[tuple[str, list[str], list[int], Hypothesis]]:
        """Transcribe one utterance; the result has the form of ESPnet's ``Speech2Text``.

        Args:
            speech: samples at 16 kHz in [-1, 1], shape (S,), of any length, or another ``Input``.
            lang: code of its language; None: the system finds it.

        Returns:
            The best hypothesis as (text, tokens, token ids, hypothesis); none if there is no speech.

        Raises:
            AudioError: the speech cannot be read.
            ValueError: the language is unknown, or the system needs one.
        """
        recording = Recording("", lang)
        pieces = list(
            recording.read(read_input(speech, name_input(speech, 0)), partial(Audio.pieces, detector=self.detector))
        )
        if recording.error is not None:
            raise recording.error
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
        return_exceptions: bool = False,
    ) -> Iterator[Result | AudioError]:
        """Transcribe recordings of any length, rate and language, in batches sorted by length.

        Audio is read as a stream: hours take no more memory than minutes.

        Args:
            inputs: one or many, see ``Input``; an iterator is read a few batches ahead.
            langs: language of all, or of each (None: the system finds it).
            max_segment: maximum length of a segment in seconds, 1 to 30; recordings are split at silences.
            progress: called with the seconds of audio of each finished batch.
            return_exceptions: go on after an input that cannot be read, and return its ``AudioError`` as its result.

        Yields:
            The result of each input, in their order.

        Raises:
            AudioError: an input cannot be read; the results of those before it were returned.
            ValueError: a language is unknown or missing, or the numbers of languages and inputs differ.
        """
        cut = partial(Audio.pieces, longest=round(max_segment * SAMPLE_RATE), detector=self.detector)
        limit = READ_AHEAD * self.batch_seconds * SAMPLE_RATE
        ahead: list[Recording] = []
        waiting = 0
        for number, (item, lang) in enumerate(_pairs(inputs, langs)):
            name = name_input(item, number)
            recording = Recording(name, lang)
            ahead.append(recording)
            for piece in recording.read(read_input(item, name), cut):
                waiting += piece.num_samples
                if waiting >= limit:
                    self._decode(ahead, progress)
                    yield from self._results(ahead[:-1], return_exceptions)
                    ahead, waiting = [recording], 0
            if recording.error is not None and not return_exceptions:
                break
        self._decode(ahead, progress)
        yield from self._results(ahead, return_exceptions)

    def _decode(self, recordings: Sequence[Recording], progress: Callable[[float], object] | None) -> None:
        """Transcribe the waiting pieces of recordings together."""
        pieces = [recording.waiting for recording in recordings]
        decoded = transcribe(self.transcriber, pieces, self.batch_seconds, progress)
        for recording, hypotheses in zip(recordings, decoded, strict=True):
            recording.add(hypotheses)

    def _results(self, recordings: Iterable[Recording], return_exceptions: bool) -> Iterator[Result | AudioError]:
        """Return the results of recordings that were read and transcribed to their end."""
        for recording in recordings:
            if recording.error is None:
                yield self._result(recording, recording.pieces, recording.hypotheses)
            elif return_exceptions:
                yield recording.error
            else:
                raise recording.error

    def _result(self, recording: Recording, pieces: Sequence[Audio], hypotheses: Sequence[Hypothesis]) -> Result:
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


def _pairs(
    inputs: Input | Iterable[Input], langs: str | Iterable[str | None] | None
) -> Iterator[tuple[Input, str | None]]:
    """Pair each input with its language."""
    inputs = as_inputs(inputs)
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


def find_device(device: str | None) -> str:
    """Check that a device exists; default: a GPU if there is one.

    Raises:
        ValueError: PyTorch does not know it, or there is no such GPU.
    """
    gpus = torch.cuda.device_count()
    try:
        wanted = torch.device(device or ("cuda" if gpus else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"expected a device cpu, cuda or cuda:N, got '{device}'") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= gpus:
        raise ValueError(f"device {device}: PyTorch sees {gpus} GPUs on this machine; use --device cpu, or another GPU")
    return str(wanted)

"""The results of a transcription: the hypothesis of an utterance, the result of a recording, and subtitles."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from espnet_lole.inference.subtitles import Cue, cues


@dataclass(frozen=True)
class Hypothesis:
    """The transcription of an utterance, or of a recording joined from its pieces.

    Attributes:
        tokens: ids without prompt and end token, and without repetitions cut off a loop.
        score: log-probability over length to the power ``length_penalty``; both include what was cut off.
        looped: whether a loop was cut off.
        language: code of the language whose prompt was used; "" from the search alone.
        posteriors: probability of each language; None where the system does not estimate it.
        decode_seconds: time of the decoding, an utterance's share of its batch by length.
    """

    tokens: list[int]
    score: float
    looped: bool = False
    language: str = ""
    posteriors: dict[str, float] | None = None
    decode_seconds: float = field(default=0.0, compare=False)

    @property
    def confidence(self) -> float | None:
        """The posterior of the language."""
        return None if self.posteriors is None else self.posteriors[self.language]


@dataclass(frozen=True)
class Segment:
    """A part of a recording: start and end in seconds, its text and its language."""

    start: float
    end: float
    text: str
    language: str


@dataclass(frozen=True)
class Result:
    """A transcribed recording.

    Attributes:
        name: the file, or the position among the inputs.
        text: the transcript.
        language: code of the language spoken longest.
        posteriors: probability of each language, averaged over time; None if the system does not estimate it.
        confidence: the posterior of ``language``, or None.
        score: log-probability per token.
        duration: length of the recording in seconds.
        decode_seconds: time of the decoding, the recording's share of its batches.
        token_ids: ids of the text; with timestamps also the timestamp tokens, relative to each cut at a silence.
        segments: the recording cut at silences, and with timestamps at the predicted timestamps.
    """

    name: str
    text: str
    language: str | None
    posteriors: dict[str, float] | None
    confidence: float | None
    score: float
    duration: float
    decode_seconds: float
    token_ids: list[int]
    segments: list[Segment]


def srt(segments: Sequence[Segment]) -> str:
    """Format subtitles as SubRip; segments without text are left out."""
    return "".join(
        f"{i}\n{_time(start, ',')} --> {_time(end, ',')}\n{text.replace('-->', '->')}\n\n"
        for i, (start, end, text) in enumerate(_cues(segments), 1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    """Format subtitles as WebVTT; segments without text are left out."""
    return "WEBVTT\n\n" + "".join(
        f"{_time(start, '.')} --> {_time(end, '.')}\n{html.escape(text, quote=False)}\n\n"
        for start, end, text in _cues(segments)
    )


def _cues(segments: Sequence[Segment]) -> list[Cue]:
    """Divide the segments with text into cues."""
    return [cue for s in segments if s.text.strip() for cue in cues(s.start, s.end, s.text)]


def _time(seconds: float, mark: str) -> str:
    """Format a time as ``hours:minutes:seconds``, a mark, and milliseconds."""
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"

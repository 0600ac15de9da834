"""What a transcribed recording gives, and its forms: JSON and subtitles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A piece of a recording: its start and end in seconds, what was said and in which language."""

    start: float
    end: float
    text: str
    language: str


@dataclass(frozen=True)
class Result:
    """A transcribed recording.

    Attributes:
        name: its file, or its place among the inputs.
        text: what was said.
        language: the one spoken longest.
        posteriors: of the languages, means over time; None: the system was told the language, or cannot find it.
        confidence: the posterior of the language, or None.
        score: log-probability of the mean token.
        duration: of the recording, in seconds.
        took: seconds of work, the recording's share of its batches.
        token_ids: of the text; with timestamps also of the times, which count from where each cut at a silence was made.
        segments: the pieces that the recording was cut into: at silences, and with timestamps at the times found.
    """

    name: str
    text: str
    language: str | None
    posteriors: dict[str, float] | None
    confidence: float | None
    score: float
    duration: float
    took: float
    token_ids: list[int]
    segments: list[Segment]


def srt(segments: Sequence[Segment]) -> str:
    """Subtitles in the form of SubRip; segments without text are left out."""
    said = [s for s in segments if s.text]
    return "".join(f"{i}\n{_clock(s.start, ',')} --> {_clock(s.end, ',')}\n{s.text}\n\n" for i, s in enumerate(said, 1))


def vtt(segments: Sequence[Segment]) -> str:
    """Subtitles in the form of WebVTT; segments without text are left out."""
    escaped = [(s, s.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) for s in segments if s.text]
    return "WEBVTT\n\n" + "".join(f"{_clock(s.start, '.')} --> {_clock(s.end, '.')}\n{text}\n\n" for s, text in escaped)


def _clock(seconds: float, point: str) -> str:
    """``hh:mm:ss,mmm``, with that decimal point."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"

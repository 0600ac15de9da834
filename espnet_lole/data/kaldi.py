"""Kaldi data directories: reading with checks, writing sorted, and replacing a directory whole or not at all."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from espnet_lole.atomic_io import whole_folder, write_whole

SEPARATOR = re.compile(r"[ \t]+")


class Segment(NamedTuple):
    """A piece of a recording, in seconds; `end` -1 means the recording's end."""

    recording: str
    start: float
    end: float


@dataclass
class KaldiDir:
    """The tables of one Kaldi data directory.

    Attributes:
        path: where it was read from, or will be written to.
        wav: recording (utterance, without segments) -> path, ark offset or command.
        text: utterance -> transcript.
        utt2spk: utterance -> speaker.
        utt2lang: utterance -> language code; empty where the directory has no such file.
        segments: utterance -> segment, or None where each recording is an utterance.
        utt2speed: utterance -> how many times as fast it is to be played; those not in it, once.
    """

    path: Path
    wav: dict[str, str]
    text: dict[str, str]
    utt2spk: dict[str, str]
    utt2lang: dict[str, str]
    segments: dict[str, Segment] | None = None
    utt2speed: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "KaldiDir":
        """Reads a directory; `utt2spk`, `utt2lang`, `segments` and `utt2speed` are optional.

        Args:
            path: the Kaldi directory.

        Returns:
            Its tables.

        Raises:
            FileNotFoundError: the directory, its wav.scp or its text does not exist.
            ValueError: a table is malformed (see `read_table`).
        """
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(
                f"expected a Kaldi directory at {path}, found none; check the path or prepare the corpus first"
            )
        tables = {name: read_table(path / name) for name in ("wav.scp", "text")}
        optional = {name: read_table(path / name) if (path / name).exists() else {} for name in ("utt2spk", "utt2lang")}
        segments = read_segments(path / "segments") if (path / "segments").exists() else None
        speeds = read_table(path / "utt2speed") if (path / "utt2speed").exists() else {}
        speeds = {utt: check_speed(value, path / "utt2speed") for utt, value in speeds.items()}
        return cls(path, tables["wav.scp"], tables["text"], optional["utt2spk"], optional["utt2lang"], segments, speeds)

    def utterances(self) -> list[str]:
        """Returns every utterance any table names, sorted."""
        heard = self.wav if self.segments is None else self.segments
        return sorted({*heard, *self.text, *self.utt2spk})

    def recording(self, utt: str) -> str:
        """Returns the recording an utterance is in."""
        return utt if self.segments is None else self.segments[utt].recording

    def speaker(self, utt: str) -> str:
        """Returns an utterance's speaker: the utterance itself where utt2spk does not say."""
        return self.utt2spk.get(utt) or utt

    def problem(self, utt: str) -> str | None:
        """Returns why an utterance cannot be used, or None if it can."""
        if utt not in self.text:
            return "not in text"
        if not self.text[utt].strip():
            return "empty transcript"
        if self.segments is not None and utt not in self.segments:
            return "not in segments"
        return None if self.wav.get(self.recording(utt)) else "not in wav.scp"

    def usable(self, utts: Iterable[str] | None = None) -> tuple[list[str], dict[str, str]]:
        """Splits utterances into those with audio and a transcript, and the rest.

        Args:
            utts: the utterances to look at; all by default.

        Returns:
            The usable ones in the given order, and each other one's reason.
        """
        problems = {utt: self.problem(utt) for utt in (self.utterances() if utts is None else utts)}
        kept = [utt for utt, problem in problems.items() if problem is None]
        return kept, {utt: problem for utt, problem in problems.items() if problem is not None}

    def write(self, folder: Path) -> None:
        """Writes the tables, sorted, with spk2utt.

        Args:
            folder: an existing directory.
        """
        write_table(folder / "wav.scp", self.wav)
        write_table(folder / "text", self.text)
        write_table(folder / "utt2spk", self.utt2spk)
        write_table(folder / "spk2utt", spk2utt(self.utt2spk))
        write_table(folder / "utt2lang", self.utt2lang)
        if self.segments is not None:
            write_table(folder / "segments", {utt: f"{s.recording} {s.start} {s.end}" for utt, s in self.segments.items()})
        if self.utt2speed:
            write_table(folder / "utt2speed", {utt: str(speed) for utt, speed in self.utt2speed.items()})


def iter_table(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields the lines of a `key value` file.

    Args:
        path: the file.

    Yields:
        The line's number from 1, its key and its value ("" if there is none); blank lines are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not UTF-8 or its key came before.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a file {path}, found none; a Kaldi directory needs at least wav.scp and text")
    seen: dict[str, int] = {}
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: expected UTF-8 text, got {raw[:40]!r}; convert the file with iconv"
                ) from error
            line = line.replace("\r", " ").strip(" \t\n")
            if not line:
                continue
            key, _, value = SEPARATOR.sub(" ", line, count=1).partition(" ")
            if key in seen:
                raise ValueError(f"{path}:{number}: expected one line per id, got '{key}' again (line {seen[key]}); remove one")
            seen[key] = number
            yield number, key, value


def read_table(path: str | Path) -> dict[str, str]:
    """Reads a `key value` file.

    Args:
        path: the file.

    Returns:
        key -> value, in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not UTF-8 or its key came before.
    """
    return {key: value for _, key, value in iter_table(Path(path))}


def read_segments(path: str | Path) -> dict[str, Segment]:
    """Reads a `segments` file: utterance, recording, start and end in seconds.

    Args:
        path: the file.

    Returns:
        utterance -> segment.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has not these four fields with finite times, or is refused by `iter_table`.
    """
    segments = {}
    for number, utt, value in iter_table(Path(path)):
        try:
            recording, *times = value.split()
            start, end = map(float, times)
            if not (math.isfinite(start) and math.isfinite(end)):
                raise ValueError(times)
            segments[utt] = Segment(recording, start, end)
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: expected 'utterance recording start end' with times in seconds, "
                f"got '{utt} {value}'; correct the line"
            ) from error
    return segments


def check_speed(value: str, where: str | Path) -> float:
    """Reads how many times as fast audio is to be played.

    Args:
        value: the number.
        where: what says so, for the message.

    Returns:
        The number.

    Raises:
        ValueError: it is none between 0.5 and 2.
    """
    try:
        speed = float(value)
    except ValueError:
        speed = math.nan
    if not 0.5 <= speed <= 2:
        raise ValueError(f"{where}: expected speed factors from 0.5 to 2, got '{value}'; correct it")
    return speed


def write_table(path: str | Path, table: Mapping[str, str | int]) -> None:
    """Writes a `key value` file, sorted as `LC_ALL=C sort` does.

    Args:
        path: the file.
        table: key -> value.
    """
    lines = (f"{key} {table[key]}".rstrip(" ") + "\n" for key in sorted(table))
    write_whole(path, "".join(lines))


def spk2utt(utt2spk: Mapping[str, str]) -> dict[str, str]:
    """Turns utt2spk around.

    Args:
        utt2spk: utterance -> speaker.

    Returns:
        speaker -> its utterances, sorted, separated by spaces.
    """
    speakers: dict[str, list[str]] = {}
    for utt in sorted(utt2spk):
        speakers.setdefault(utt2spk[utt], []).append(utt)
    return {speaker: " ".join(utts) for speaker, utts in speakers.items()}


@contextmanager
def atomic_dir(dst: str | Path) -> Iterator[Path]:
    """Gives an empty directory that takes the place of `dst` when the block ends well, and goes if it does not.

    Args:
        dst: the directory to make or to replace.

    Yields:
        The directory to write into, a sibling of `dst`.

    Raises:
        ValueError: `dst` exists and is not a Kaldi directory, so that replacing it would destroy something else.
    """
    dst = Path(os.path.realpath(dst))
    if dst.exists() and not (dst.is_dir() and ((dst / "wav.scp").exists() or not any(dst.iterdir()))):
        raise ValueError(
            f"expected {dst} to be new, empty or a Kaldi directory, found something else; choose another or remove it"
        )
    with whole_folder(dst) as folder:
        yield folder

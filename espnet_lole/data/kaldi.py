"""Kaldi data directories: checked reading and sorted writing."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from espnet_lole.atomic_io import write_text_atomic

NO_LANGUAGE = "?"  # stands for the language of utterances that utt2lang does not list
NO_ID = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ufeff]")  # spaces, control characters and byte-order marks
BREAK = re.compile(r"[ \t]*[\r\n][ \t\r\n]*")
AUDIO_ENDINGS = tuple(
    f".{ending}"
    for ending in "wav flac mp3 ogg oga opus m4a mp4 mov mkv mka webm amr aac wma aif aiff au sph caf w64 3gp".split()
)


class KaldiSegment(NamedTuple):
    """A part of a recording, in seconds; an end of -1 is the end of the recording."""

    recording: str
    start: float
    end: float


@dataclass
class KaldiDir:
    """The tables of one Kaldi data directory.

    Attributes:
        path: where it was read from, or where it will be.
        wav: recording (utterance, without segments) -> path, ark offset or command.
        text: utterance -> transcript.
        utt2spk: utterance -> speaker.
        utt2lang: utterance -> language code; empty where the directory has no such file.
        segments: utterance -> segment, or None where each recording is an utterance.
        utt2speed: utterance -> speed factor of speed perturbation; 1 for utterances that are not listed.
        ids_given: the corpus names its utterances; otherwise ids were made from the names of files.
    """

    path: Path
    wav: dict[str, str] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    utt2spk: dict[str, str] = field(default_factory=dict)
    utt2lang: dict[str, str] = field(default_factory=dict)
    segments: dict[str, KaldiSegment] | None = None
    utt2speed: dict[str, float] = field(default_factory=dict)
    ids_given: bool = True

    @classmethod
    def read(cls, path: str | Path) -> "KaldiDir":
        """Read a directory; only `wav.scp` and `text` are required.

        Raises:
            FileNotFoundError: the directory, its wav.scp or its text does not exist.
            ValueError: a table is malformed (see `read_table`).
        """
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(
                f"expected a Kaldi directory at {path}, but there is none; check the path or prepare the corpus first"
            )
        required = [read_table(path / name) for name in ("wav.scp", "text")]
        utt2spk, utt2lang, speeds = (
            read_table(path / name, values_are_ids=name == "utt2spk") if (path / name).exists() else {}
            for name in ("utt2spk", "utt2lang", "utt2speed")
        )
        segments = read_segments(path / "segments") if (path / "segments").exists() else None
        utt2speed = {utt: parse_speed(value, path / "utt2speed") for utt, value in speeds.items()}
        return cls(path, *required, utt2spk, utt2lang, segments, utt2speed)

    def utterances(self) -> list[str]:
        """List all utterances of the tables (utt2lang aside), sorted."""
        with_audio = self.wav if self.segments is None else self.segments
        return sorted({*with_audio, *self.text, *self.utt2spk})

    def by_language(self) -> dict[str, list[str]]:
        """Group the utterances by their language in utt2lang, or NO_LANGUAGE; languages and utterances are sorted."""
        groups: dict[str, list[str]] = defaultdict(list)
        for utt in self.utterances():
            groups[self.utt2lang.get(utt) or NO_LANGUAGE].append(utt)
        return dict(sorted(groups.items()))

    def recording(self, utt: str) -> str:
        """Return the recording that contains an utterance."""
        return utt if self.segments is None else self.segments[utt].recording

    def speaker(self, utt: str) -> str:
        """Return the speaker of an utterance: the utterance itself where utt2spk does not list it."""
        return self.utt2spk.get(utt) or utt

    def problem(self, utt: str) -> str | None:
        """Return why an utterance cannot be used, or None if it can."""
        if utt not in self.text:
            return "not in text"
        if not any(c.isprintable() and c != " " for c in self.text[utt]):
            return "empty transcript"
        if self.segments is not None and utt not in self.segments:
            return "not in segments"
        return None if self.wav.get(self.recording(utt)) else "not in wav.scp"

    def subset(self, utts: Collection[str]) -> "KaldiDir":
        """Select usable utterances and their recordings; each has a speaker."""
        recordings = {self.recording(utt) for utt in utts}
        return replace(
            self,
            wav={recording: self.wav[recording] for recording in recordings},
            text={utt: self.text[utt] for utt in utts},
            utt2spk={utt: self.speaker(utt) for utt in utts},
            utt2lang={utt: self.utt2lang[utt] for utt in utts if utt in self.utt2lang},
            segments=None if self.segments is None else {utt: self.segments[utt] for utt in utts},
            utt2speed={utt: self.utt2speed[utt] for utt in utts if utt in self.utt2speed},
        )

    def write(self, folder: Path) -> None:
        """Write the tables, sorted, and spk2utt into an existing folder."""
        spk2utt: dict[str, list[str]] = defaultdict(list)
        for utt in sorted(self.utt2spk):
            spk2utt[self.utt2spk[utt]].append(utt)
        write_table(folder / "wav.scp", self.wav)
        write_table(folder / "text", self.text)
        write_table(folder / "utt2spk", self.utt2spk)
        write_table(folder / "spk2utt", {speaker: " ".join(utts) for speaker, utts in spk2utt.items()})
        write_table(folder / "utt2lang", self.utt2lang)
        if self.segments is not None:
            lines = {utt: f"{s.recording} {s.start} {s.end}" for utt, s in self.segments.items()}
            write_table(folder / "segments", lines)
        if self.utt2speed:
            write_table(folder / "utt2speed", self.utt2speed)


def read_table(path: str | Path, *, values_are_ids: bool = False) -> dict[str, str]:
    """Read a table with one `id value` per line: wav.scp, text, utt2lang, hypotheses and the like.

    An id ends at the first space or tab; the rest of the line is the value, "" where there is none. Blank lines are
    skipped.

    Args:
        path: the file, in UTF-8; a byte-order mark at its start and carriage returns at the ends of lines are accepted.
        values_are_ids: check the values like the ids, as in utt2spk.

    Returns:
        id -> value, in the order of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is not UTF-8, repeats an id, has a carriage return inside, or an id that some reader of
            tables would split; the message names file and line.
    """
    return {key: check_id(value, where) if values_are_ids else value for where, key, value in _parse_lines(Path(path))}


def read_transcripts(path: str | Path, *, by_name: bool = False) -> dict[str, str]:
    """Read texts by id from Kaldi's text, or by file from the output of `lole transcribe`, where a tab ends the path.

    Args:
        path: the file.
        by_name: the name of a file is its id, without folder and audio ending.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a name occurs twice, or `read_table` would refuse the line; the message names file and line.
    """
    return {key: text for _, key, text in _parse_lines(Path(path), _split_transcript, _file_name if by_name else str)}


def check_id(name: str, where: str | Path) -> str:
    """Return an id, after checking that no reader of tables splits it.

    Args:
        name: the id. ESPnet splits at every space of Unicode, and Kaldi at those of ASCII.
        where: the file and line that contain it, for the message.

    Raises:
        ValueError: it contains a space, a control character or a byte-order mark.
    """
    if wrong := NO_ID.search(name):
        raise ValueError(
            f"{where}: expected an id without spaces and control characters, got {ascii(name)} with "
            f"U+{ord(wrong[0]):04X}; rename it in every table"
        )
    return name


def _split_line(line: str, where: str) -> tuple[str, str]:
    """Split a line into its id and its value."""
    key, value = [*re.split("[ \t]+", line.strip(" \t"), maxsplit=1), ""][:2]
    return check_id(key, where), value


def _split_transcript(line: str, where: str) -> tuple[str, str]:
    """Split a line at the tab after a path, which may contain spaces if it ends like an audio file."""
    key, tab, text = line.strip(" ").partition("\t")
    if not tab:
        return _split_line(line, where)
    if not key.lower().endswith(AUDIO_ENDINGS):
        if " " in key:
            raise ValueError(
                f"{where}: expected a tab after an id or the name of an audio file, got one after '{key[:40]}'; "
                "replace tabs inside texts by spaces"
            )
        check_id(key, where)
    return key, text.strip(" \t")


def _file_name(path: str) -> str:
    """Return the name of a file without its folder and audio ending; other dots belong to the name."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] if name.lower().endswith(AUDIO_ENDINGS) else name


def _parse_lines(
    path: Path, split: Callable[[str, str], tuple[str, str]] = _split_line, rename: Callable[[str], str] = str
) -> Iterator[tuple[str, str, str]]:
    """Yield `file:line`, id and value of each line of a table that is not blank."""
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a file {path}, but there is none; check the path or run the stage that writes it"
        )
    seen: dict[str, int] = {}
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: expected UTF-8, got {raw[:40]!r}; convert the file with iconv") from error
            if not line.strip(" \t"):
                continue
            if "\r" in line:
                raise ValueError(f"{where}: expected one line, got a carriage return inside it; convert with mac2unix")
            key, value = split(line, where)
            key = rename(key)
            if key in seen:
                raise ValueError(
                    f"{where}: expected one line per id, got '{key}' again (line {seen[key]}); remove or rename one"
                )
            seen[key] = number
            yield where, key, value


def read_lengths(path: str | Path) -> dict[str, int]:
    """Read utt2num_samples: utterance -> number of samples.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a value is not a number of samples, or `read_table` would refuse the line.
    """
    lengths = {}
    for where, utt, value in _parse_lines(Path(path)):
        if not value.isdecimal():
            raise ValueError(f"{where}: expected a number of samples, got '{value}'; format the directory again")
        lengths[utt] = int(value)
    return lengths


def read_segments(path: str | Path) -> dict[str, KaldiSegment]:
    """Read a `segments` file: utterance, recording, start and end in seconds.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line lacks one of the four fields or a finite time, or `read_table` would refuse it.
    """
    segments = {}
    for where, utt, value in _parse_lines(Path(path)):
        try:
            recording, *times = value.split()
            start, end = map(float, times)
            if not (math.isfinite(start) and math.isfinite(end)):
                raise ValueError(times)
        except ValueError as error:
            raise ValueError(
                f"{where}: expected 'utterance recording start end' with times in seconds, got '{utt} {value}'; "
                "correct the line"
            ) from error
        segments[utt] = KaldiSegment(recording, start, end)
    return segments


def parse_speed(value: str, where: str | Path) -> float:
    """Parse a speed factor.

    Args:
        value: the number.
        where: the option or file it comes from, for the message.

    Raises:
        ValueError: it is not a number from 0.5 to 2.
    """
    try:
        speed = float(value)
    except ValueError:
        speed = math.nan
    if not 0.5 <= speed <= 2:
        raise ValueError(f"{where}: expected speed factors from 0.5 to 2, got '{value}'; correct it")
    return speed


def write_table(path: str | Path, table: Mapping[str, object]) -> None:
    """Write a table with one `id value` per line, sorted as by `LC_ALL=C sort`; a space stands for each line break.

    Raises:
        ValueError: an id could not be read again.
    """
    lines = (f"{check_id(key, path)} {BREAK.sub(' ', str(table[key]))}" for key in sorted(table))
    write_text_atomic(path, "".join(line.rstrip(" ") + "\n" for line in lines))

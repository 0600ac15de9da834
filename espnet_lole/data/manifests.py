"""Manifests: tables in CSV, TSV or JSON lines, or of lhotse, with the audio and the text of each utterance."""

import codecs
import csv
import gzip
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from espnet_lole.data.audio import split_ark
from espnet_lole.data.kaldi import KaldiDir, KaldiSegment

TABLES = (".csv", ".tsv")
LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
COLUMNS = {
    "audio": "path file file_name filename audio_path audio_file audio_filepath wav",
    "text": "sentence transcript transcription",
    "language": "lang locale",
    "speaker": "speaker_id spk client_id",
    "split": "set",
    "id": "utt utt_id utterance_id",
    "start": "offset start_time",
    "end": "end_time",
    "duration": "",
}
"""Column -> other names for it."""
SPLITS = {"train": "training", "dev": "valid validation", "test": "testing"}
"""Set -> other names for it in the column `split` and in `datasets`."""
ENDING = re.compile(r"\.[A-Za-z]\w{1,4}$")
Cells = tuple[str, Mapping[str, Any]]
"""A row, with `file:line` before it."""


class Row(NamedTuple):
    """An utterance of a manifest.

    Attributes:
        where: `file:line`.
        audio: path as it is written there.
        text: transcript, without line breaks.
        language: as it is written there; empty if it is not.
        split: train, dev or test; empty if it is not given.
        speaker: empty if it is not given.
        id: empty if it is not given.
        start: of the utterance in its file, in seconds.
        end: in seconds; -1 is the end of the file.
    """

    where: str
    audio: str
    text: str
    language: str = ""
    split: str = ""
    speaker: str = ""
    id: str = ""
    start: float = 0.0
    end: float = -1.0


def is_manifest(path: str | Path) -> bool:
    """Return whether a path has the suffix of a manifest."""
    return str(path).lower().endswith((*TABLES, *LINES))


def parse_rows(cells: Iterable[Cells], path: Path) -> list[Row]:
    """Parse rows, whose keys are names of columns.

    Args:
        cells: rows with their places.
        path: of the manifest, for messages.

    Raises:
        ValueError: a column is missing or in it twice, a value is not usable, or an utterance is there twice.
    """
    rows, seen, known = [], {}, {}
    for where, values in cells:
        names = known.get(tuple(values)) or known.setdefault(tuple(values), _columns(values, where))
        row = _parse_row(where, {name: values[column] for name, column in names.items()})
        key = (row.audio, row.start, row.end)
        if key in seen:
            raise ValueError(f"{where}: expected each audio once, got '{row.audio}' again ({seen[key]}); remove one")
        seen[key] = where
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: expected utterances, got none; fill the file")
    return rows


def to_kaldi(rows: Sequence[Row], path: Path, folders: Sequence[Path] = ()) -> KaldiDir:
    """Make the tables of a Kaldi directory, with ids from the manifest or else from the names of the files.

    Args:
        rows: of one language and set.
        path: of the manifest.
        folders: where relative paths may start, apart from the manifest's folder and its `clips`.

    Raises:
        ValueError: two utterances would get one id.
    """
    given, lines = len({row.id for row in rows if row.id}) == len(rows), {}
    timed = any(row.start or row.end != -1 for row in rows)
    kaldi = KaldiDir(path, segments={} if timed else None, ids_given=given)
    names = _names_of_files(rows)
    for row in rows:
        recording = names[row.audio]
        times = "" if (row.start, row.end) == (0.0, -1.0) else f"-{_milliseconds(row.start)}-{_milliseconds(row.end)}"
        utt = make_id(row.id) if given else recording + times
        key = utt if kaldi.segments is None else recording
        if utt in lines or kaldi.wav.get(key, row.audio) != row.audio:
            other = lines.get(utt, "another file")
            raise ValueError(
                f"{row.where}: expected utterances with different ids, got '{utt}' again ({other}); add a column id"
            )
        lines[utt] = row.where
        kaldi.wav[key] = row.audio
        kaldi.text[utt] = row.text
        if row.speaker:
            kaldi.utt2spk[utt] = make_id(row.speaker)
        if kaldi.segments is not None:
            kaldi.segments[utt] = KaldiSegment(recording, row.start, row.end)
    places = [*folders, path.parent, path.parent / "clips"]
    kaldi.wav = {recording: _find(audio, places) for recording, audio in kaldi.wav.items()}
    return kaldi


def read_table(path: Path) -> Iterator[Cells]:
    """Yield the rows of a CSV or TSV with a header.

    The separator of a CSV is the most frequent of `,`, `;` and tab in its header. Quotes have no meaning in a TSV
    whose header has none (Common Voice), but for a cell that doubles those within it.

    Raises:
        ValueError: it is not UTF-8, or a row has other columns than the header; the message names file and line.
    """
    content = _read_text(path)
    first = content.partition("\n")[0]
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    plain = separator == "\t" and '"' not in first
    header: list[str] = []
    for where, cells in _split_rows(path, content, separator, csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL):
        if not header:
            header = [cell.strip() for cell in cells]
            if repeated := {cell for cell in header if cell and header.count(cell) > 1}:
                raise ValueError(f"{where}: expected columns of different names, got {', '.join(repeated)} twice")
        elif len(cells) != len(header):
            raise ValueError(
                f"{where}: expected {len(header)} columns as in the header, got {len(cells)}; put a text that contains "
                f"{separator!r} into double quotes"
            )
        else:
            yield where, dict(zip(header, map(_unquote, cells) if plain else cells, strict=True))


def read_lines(path: Path) -> Iterator[Cells]:
    """Yield the objects of a file with a JSON object on each line.

    Raises:
        ValueError: a line is not a JSON object; the message names file and line.
    """
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: expected one JSON object a line, got {line[:40]!r}: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{where}: expected one JSON object a line, got {line[:40]!r}; correct the line")
        yield where, values


def make_id(name: str) -> str:
    """Make an id without white space of a name."""
    return "".join(f"%{ord(c):02X}" if c.isspace() or unicodedata.category(c) == "Cf" else c for c in name)


def _read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark, compressed or not."""
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        content = content.removeprefix(codecs.BOM_UTF8)
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: expected UTF-8, got {content[error.start : error.start + 20]!r}; convert "
            "the file with iconv"
        ) from error
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: expected a gzip file: {error}; copy it again") from error


def _split_rows(path: Path, content: str, separator: str, quoting: int) -> Iterator[tuple[str, list[str]]]:
    """Yield `file:line` and the cells of each row of a table that is not blank."""
    csv.field_size_limit(1 << 27)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, quoting=quoting, strict=True)
    line = 0
    while True:
        where = f"{path}:{line + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{where}: not a row of a table: {error}; correct its quotes") from error
        line = reader.line_num
        if any(cell.strip() for cell in cells):
            yield where, cells


def _unquote(cell: str) -> str:
    """Remove the quotes around a cell that doubles those within it: a program that quotes has written it."""
    inner = cell[1:-1]
    doubled = cell.startswith('"') and cell.endswith('"') and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if doubled else cell


def _columns(values: Mapping[str, Any], where: str) -> dict[str, str]:
    """Find the columns that have a meaning: name -> the column's own name."""
    present = {str(column).strip().lower(): column for column in values}
    found = {}
    for name, others in COLUMNS.items():
        if name in present:
            found[name] = present[name]
            continue
        columns = [present[other] for other in others.split() if other in present]
        if len(columns) > 1:
            raise ValueError(f"{where}: {' and '.join(columns)} may both be the {name}; name one of them '{name}'")
        found.update(zip([name], columns, strict=False))
    if missing := [name for name in ("audio", "text") if name not in found]:
        accepted = "; ".join(f"{name}: {name} {COLUMNS[name]}" for name in missing)
        raise ValueError(f"{where}: expected a column for {accepted}, got the columns {', '.join(values) or 'none'}")
    return found


def _parse_row(where: str, values: Mapping[str, Any]) -> Row:
    """Parse the values of a row's columns."""
    audio = values["audio"]
    audio = _string(where, "audio", audio.get("path") if isinstance(audio, Mapping) else audio)
    if not audio:
        raise ValueError(f"{where}: expected the path of an audio file, got none; complete or remove the line")
    if audio.endswith("|") or split_ark(audio)[1] is not None:
        raise ValueError(
            f"{where}: expected an audio file, got '{audio}', which is a command or a part; rename the file"
        )
    text = _string(where, "text", values["text"], breaks=True)
    others = {name: _string(where, name, values.get(name)) for name in ("language", "speaker", "id")}
    split = _string(where, "split", values.get("split")).lower()
    split = next((name for name, others in SPLITS.items() if split in (name, *others.split())), split)
    if split and split not in SPLITS:
        raise ValueError(f"{where}: expected split to be {', '.join(SPLITS)}, got '{split}'; correct it")
    start, end, duration = (_seconds(where, name, values.get(name)) for name in ("start", "end", "duration"))
    if end is None and duration is not None and start is not None:  # without a start it is the file's
        end = start + duration
    start, end = start or 0.0, -1.0 if end is None else end
    if start < 0 or (end != -1 and end <= start):
        raise ValueError(f"{where}: expected 0 <= start < end in seconds, got {start:g} and {end:g}; correct the line")
    return Row(where, audio, text, split=split, start=start, end=end, **others)


def _string(where: str, name: str, value: object, breaks: bool = False) -> str:
    """Return a value as a string without white space around it, and with a space for each line break.

    Raises:
        ValueError: it is of another type, or has control characters.
    """
    if value is None:
        return ""
    if not isinstance(value, str) and (name in ("audio", "text") or not isinstance(value, int)):
        raise ValueError(f"{where}: expected {name} to be a string, got {value!r}; correct the line")
    text = " ".join(str(value).split()) if breaks else str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: expected Unicode in {name}, got {text[:40]!r}; correct the line") from None
    if wrong := [c for c in text if unicodedata.category(c) == "Cc"]:
        raise ValueError(f"{where}: expected no control characters in {name}, got {wrong[0]!r}; remove them")
    return text


def _seconds(where: str, name: str, value: object) -> float | None:
    """Return a time, None for an empty cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{where}: expected {name} in seconds from 0, got {value!r}; correct the line")
    return seconds


def _names_of_files(rows: Sequence[Row]) -> dict[str, str]:
    """Make an id for each audio file: its path below the folder that all share, without suffix."""
    paths = dict.fromkeys(row.audio for row in rows)
    folders = {os.path.dirname(path) for path in paths}
    shared = os.path.commonpath(folders) if len({os.path.isabs(folder) for folder in folders}) == 1 else ""
    names = {path: os.path.relpath(path, shared) if shared else path for path in paths}
    return {path: make_id(ENDING.sub("", name).replace("/", "-")) for path, name in names.items()}


def _milliseconds(seconds: float) -> str:
    return "end" if seconds == -1 else f"{round(1000 * seconds):07d}"


def _find(audio: str, places: Sequence[Path]) -> str:
    """Make a path absolute by the first of these folders that has it; else return it as it is."""
    found = (os.path.abspath(place / audio) for place in places if (place / audio).is_file())
    return audio if os.path.isabs(audio) else next(found, audio)

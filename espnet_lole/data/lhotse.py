"""Reading of manifests, also of lhotse's: cuts, or supervisions whose recordings are in the file beside them."""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from espnet_lole.data.manifests import TABLES, Cells, Row, parse_rows, read_lines, read_table


def read_manifest(path: Path) -> list[Row]:
    """Read a manifest.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not UTF-8 or malformed, a column is missing, or a value is not usable; the message names file
            and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a manifest at {path}, but there is none; correct its path")
    return _read_once(path, str(path.absolute()), path.stat().st_mtime_ns, path.stat().st_size)


@lru_cache(4)
def _read_once(path: Path, *_: object) -> list[Row]:
    """Read a manifest that several languages and sets share; the other arguments tell whether the file has changed."""
    table = str(path).lower().endswith(TABLES)
    return parse_rows(read_table(path) if table else find_utterances(read_lines(path), path), path)


def find_utterances(lines: Iterable[Cells], path: Path) -> Iterator[Cells]:
    """Yield the utterances of lhotse's objects as rows, and other objects as they are.

    Args:
        lines: objects with their places.
        path: their file; for `NAME_supervisions_SET.jsonl.gz` the recordings are in `NAME_recordings_SET.jsonl.gz`.

    Raises:
        FileNotFoundError: the recordings do not exist.
        ValueError: an object is more than a part of a file with one channel.
    """
    recordings: dict[str, Mapping[str, Any]] = {}
    for where, values in lines:
        if "type" in values and str(values["type"]).endswith("Cut"):
            yield from _utterances_of_cut(where, values)
        elif "recording_id" in values and "duration" in values:
            recordings = recordings or _read_recordings(path)
            if values["recording_id"] not in recordings:
                raise ValueError(f"{where}: its recording '{values['recording_id']}' is not in the recordings; add it")
            yield where, _utterance(where, values, recordings[values["recording_id"]], 0.0)
        else:
            yield where, values


def _read_recordings(path: Path) -> dict[str, Mapping[str, Any]]:
    """Read the recordings of supervisions."""
    file = path.with_name(path.name.replace("supervisions", "recordings"))
    if file == path:
        raise ValueError(f"{path}: supervisions need their recordings: name the files *supervisions* and *recordings*")
    if not file.is_file():
        raise FileNotFoundError(
            f"expected the recordings of {path} in {file}, but there is no such file; copy it there"
        )
    return {str(values.get("id")): values for _, values in read_lines(file)}


def _utterances_of_cut(where: str, cut: Mapping[str, Any]) -> Iterator[Cells]:
    """Yield the supervisions of a cut, with times in its recording."""
    if cut["type"] != "MonoCut" or not isinstance(cut.get("recording"), dict):
        raise ValueError(f"{where}: expected a MonoCut with its recording, got a {cut['type']}; export such cuts")
    for supervision in cut.get("supervisions") or ():
        yield where, _utterance(where, supervision, cut["recording"], cut.get("start", 0.0))


def _utterance(
    where: str, supervision: Mapping[str, Any], recording: Mapping[str, Any], start: float
) -> dict[str, Any]:
    """Return the row of a supervision.

    Args:
        where: its place, for messages.
        supervision: its times count from `start`.
        recording: what it is a part of.
        start: in seconds.
    """
    sources = recording.get("sources") or [{}]
    plain = len(sources) == 1 and sources[0].get("type") == "file" and len(sources[0].get("channels") or [0]) == 1
    if not plain or recording.get("transforms"):
        raise ValueError(f"{where}: expected a recording of one file and channel without transforms; save it as a file")
    row = {name: supervision.get(name) for name in ("id", "text", "language", "speaker", "duration")}
    return row | {"audio": sources[0].get("source"), "start": start + supervision.get("start", 0.0)}

"""Hugging Face `datasets`: a folder that was saved to disk or holds parquet files, or a name on the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_lole.atomic_io import atomic_write
from espnet_lole.data.manifests import COLUMNS, SPLITS, Cells

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

HUB = "hf:"
AUDIO = ("audio", *COLUMNS["audio"].split())
SAVED = ("dataset_dict.json", "state.json")


def is_dataset(path: str | Path) -> bool:
    """Return whether a path is a name on the hub, a parquet file, or a folder of `datasets`."""
    folder = Path(path)
    if str(path).startswith(HUB) or folder.suffix == ".parquet":
        return True
    return any((folder / name).is_file() for name in SAVED) or any(folder.rglob("*.parquet"))


def read_dataset(path: Path, split: str, extracted: Path) -> Iterator[Cells]:
    """Yield the rows of a set; audio that it contains is written to files as it is.

    Args:
        path: what `is_dataset` accepts; on the hub `hf:OWNER/NAME`, `hf:OWNER/NAME:CONFIG`.
        split: train, dev or test.
        extracted: folder for the audio.

    Raises:
        ValueError: `datasets` is not installed, there is no such set, or its audio is neither a file nor the content of
            one.
        OSError: it cannot be read.
    """
    data = _open(path, split)
    for number, values in enumerate(data):
        where = f"{path}: row {number} of {split}"
        files = {name: audio for name in AUDIO if isinstance(audio := values.get(name), dict)}
        yield where, values | {name: _extract(audio, where, path, extracted, number) for name, audio in files.items()}


def _open(path: Path, split: str) -> "Dataset | IterableDataset":
    """Open a set, without decoding its audio."""
    try:
        from datasets import Audio, load_dataset, load_from_disk
        from datasets.exceptions import DatasetNotFoundError
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} is read by datasets, which is not installed: pip install datasets") from error
    name, _, config = str(path).removeprefix(HUB).partition(":")
    try:
        if any((path / file).is_file() for file in SAVED):
            sets = load_from_disk(name)
        elif path.suffix == ".parquet":
            sets = load_dataset("parquet", data_files=name, streaming=True)
        else:
            sets = load_dataset(name, config or None, streaming=True)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise OSError(
            f"{path} cannot be read: {' '.join(str(error).split())}; check the name and the network"
        ) from error
    data = _select(sets, split, path) if isinstance(sets, dict) else sets
    features = data.features or {}
    for column in (column for column, kind in features.items() if isinstance(kind, Audio)):
        data = data.cast_column(column, Audio(decode=False))
    return data


def _select(sets: dict[str, Any], split: str, path: Path) -> "Dataset | IterableDataset":
    """Select a set by its name, or the only one of a file."""
    if len(sets) == 1 and path.suffix == ".parquet":
        return next(iter(sets.values()))
    names = [name for name in sets if name in (split, *SPLITS[split].split())]
    if len(names) != 1:
        raise ValueError(f"{path}: expected one set {split} ({SPLITS[split]}), got {', '.join(sets)}; name other data")
    return sets[names[0]]


def _extract(audio: dict[str, Any], where: str, path: Path, extracted: Path, number: int) -> str:
    """Return the path of a row's audio, after writing it to a file if the row contains it."""
    name, content = audio.get("path"), audio.get("bytes")
    if content is None:
        if not isinstance(name, str):
            raise ValueError(
                f"{where}: expected audio as a file or its bytes, got {', '.join(audio)}; cast it to Audio"
            )
        return str((path if path.is_dir() else path.parent) / name)
    file = extracted.absolute() / f"{number:07d}-{Path(name or '').name}"
    with atomic_write(file) as temporary:
        temporary.write_bytes(content)
    return str(file)

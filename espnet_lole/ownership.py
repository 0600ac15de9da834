"""What may be written to: new names, empty folders, and what this package has made itself. All else is the user's."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path

MARKER = ".espnet_lole"
"""File in each folder that this package makes: a digest of its content, so that what was added or changed is seen."""


def check_output(folder: str | Path, inputs: Iterable[str | Path] = (), known: Collection[str] = ()) -> None:
    """Refuse a folder whose writing would delete something of the user's. Links are followed.

    Args:
        folder: to make or to replace. It must be new, empty, or made by this package and not changed since.
        inputs: files and folders that are read, of which none may be the folder, lie in it, or contain it. Names of
            which there is no file, such as those of the hub, are ignored.
        known: patterns of names, those of folders with a slash at the end; a folder without a marker may be replaced if
            it holds only these, because older versions of this package made it.

    Raises:
        ValueError: it is not so; nothing was changed.
    """
    real = _real(folder)
    if _contains(real, Path.cwd()):
        raise ValueError(f"{folder} is the current directory or contains it: name a new folder")
    for source in filter(os.path.exists, inputs):
        if _contains(real, _real(source)) or _contains(_real(source), real):
            raise ValueError(f"{folder} is, contains or lies in {source}, which is read: name a folder outside of it")
    if real.exists() and not (real.is_dir() and is_own(real, known)):
        raise ValueError(
            f"{folder} exists, and holds files that were not made by this program or were changed since: name a new "
            "folder, or move it away"
        )


def check_output_file(file: str | Path, overwrite: bool = False) -> None:
    """Refuse a file that exists, unless it is an archive of a folder that this package made.

    Args:
        file: to write.
        overwrite: the user allows to replace a file, though no folder.

    Raises:
        ValueError: it exists; nothing was changed.
    """
    file = Path(file)
    if not os.path.lexists(file) or (file.is_file() and (overwrite or _is_own_archive(file))):
        return
    raise ValueError(f"{file} exists already: name a new file, or move it away")


def is_own(folder: Path, known: Collection[str] = ()) -> bool:
    """Return whether a folder is empty, unchanged since this package made it, or holds only files that fit patterns."""
    marker = folder / MARKER
    if marker.is_file():
        return marker.read_text(encoding="utf-8").strip() == _digest(folder)
    return all(any(_fits(file, pattern) for pattern in known) for file in folder.iterdir())


def _fits(path: Path, pattern: str) -> bool:
    """Return whether a file fits a pattern, or a folder one that ends in a slash."""
    kind = path.is_dir() if pattern.endswith("/") else path.is_file()
    return kind and fnmatch.fnmatch(path.name, pattern.rstrip("/"))


def mark(folder: Path) -> None:
    """Write the marker of a folder that is complete."""
    (folder / MARKER).write_text(_digest(folder) + "\n", encoding="utf-8")


def _digest(folder: Path) -> str:
    """Compute a digest of the names, sizes and dates of all files in a folder, and of the names of its folders."""
    paths = sorted(os.path.join(root, name) for root, *names in os.walk(folder) for name in sum(names, []))
    lines = (f"{os.path.relpath(path, folder)}\0{_state(path)}\n" for path in paths if path != str(folder / MARKER))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _state(path: str) -> tuple[int, int] | None:
    """Return size and date of a file, which an edit changes; None for a folder."""
    stat = os.lstat(path)
    return None if os.path.isdir(path) else (stat.st_size, stat.st_mtime_ns)


def _is_own_archive(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return MARKER in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _contains(folder: Path, path: Path) -> bool:
    return folder == path or folder in path.parents

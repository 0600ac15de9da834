"""Files and folders that appear whole or not at all, whatever kills the program that writes them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """An ``OSError`` in the context says that ``path`` was to be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"expected to write {path}, got: {error.strerror or error}: check the disk's free space and the permissions; "
            "what was there before is as it was",
        ) from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A new file beside ``path`` to write to, which takes its place when the context ends without an error.

    Args:
        path: the file, whose folder is made if it is not there.

    Yields:
        Path of an empty file with the suffix of ``path``.

    Raises:
        OSError: it cannot be written, e.g. for a full disk; the message says what is left as it was.
    """
    path = Path(path)
    made = None
    try:
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
            os.close(handle)
            made = Path(name)
            yield made
            with made.open("rb") as written:
                os.fsync(written.fileno())  # else a power cut could leave the new name with no content
            os.chmod(made, 0o644)
            os.replace(made, path)
    finally:
        if made is not None:
            made.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str) -> None:
    """Write a UTF-8 file so that a reader sees the old one or the new one, never a part.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as made:
        made.write_text(text, encoding="utf-8", newline="")


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder beside ``folder``, which takes its place when the context ends without an error.

    What a killed run left beside it (``.NAME.partial``) is removed by the next one.

    Args:
        folder: to make or to replace.

    Yields:
        The folder to write into.

    Raises:
        OSError: it cannot be made; the message says what is left as it was.
    """
    folder = Path(os.path.realpath(folder))
    partial, previous = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.previous")
    with _told(folder):
        if previous.exists() and not folder.exists():
            os.replace(previous, folder)  # killed between the two renames below
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        yield partial
        with _told(folder):
            shutil.rmtree(previous, ignore_errors=True)
            if folder.exists():
                os.replace(folder, previous)
            os.replace(partial, folder)
            shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

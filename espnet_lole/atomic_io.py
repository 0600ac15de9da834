"""Files and folders that appear whole or not at all, whatever kills the program that writes them."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a file that may not grow


@contextmanager
def _told(path: Path, numbers: Container[int] | None = None) -> Iterator[None]:
    """An error of the system, of these numbers or any, says that ``path`` was to be written, and what to do."""
    try:
        yield
    except Exception as error:
        fault = _of_the_system(error)
        if fault is None or (numbers is not None and fault.errno not in numbers):
            raise
        reason = os.strerror(fault.errno) if fault.errno else fault
        raise OSError(
            fault.errno,
            f"expected to write {path}, got: {reason}: check the disk's free space and the permissions; "
            "what was there before is as it was",
        ) from error


def _of_the_system(error: BaseException) -> OSError | None:
    """The system's error behind that of a library: safetensors gives the number, torch raises another after it."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return _of_the_system(error.__context__) if error.__context__ is not None else None


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
        with _told(path, FULL):
            yield made
        with _told(path):
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
        OSError: it cannot be made, or the disk is full; the message says what is left as it was.
    """
    folder = Path(os.path.realpath(folder))
    partial, previous = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.previous")
    with _told(folder):
        if previous.exists() and not folder.exists():
            os.replace(previous, folder)  # killed between the two renames below
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        with _told(folder, FULL):
            yield partial
        with _told(folder):
            shutil.rmtree(previous, ignore_errors=True)
            if folder.exists():
                os.replace(folder, previous)
            os.replace(partial, folder)
            shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Within the context, no other process gets this folder by asking for it, too; where this process ends, others may.

    Args:
        folder: is made if it is not there, and has an empty file ``.lock`` from then on.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be written to.
    """
    file = Path(folder) / ".lock"
    with _told(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.open("w")
    with lock:
        try:
            fcntl.lockf(
                lock, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # unlike flock's, of this process alone and not of its children
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # file systems without locks
                logging.warning(f"a second process would not be kept from {folder}: {os.strerror(error.errno)}")
            else:
                raise BlockingIOError(
                    error.errno,
                    f"expected {folder} for this process alone, got another that runs: wait for its end, or end it",
                ) from error
        yield

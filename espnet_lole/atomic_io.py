"""Files and folders that appear whole or not at all, whatever kills the program that writes them."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from espnet_lole.ownership import MARKER, check_output, mark

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota, and a file that may not grow."""

LOCK = ".lock"
"""File in a folder that ``dir_lock`` has locked."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary file to write to, which replaces ``path`` when the context ends without an error.

    Args:
        path: the file; its folder is made if it does not exist.

    Yields:
        Path of an empty file in the same folder with the suffix of ``path``.

    Raises:
        OSError: it cannot be written, e.g. because the disk is full; the message names ``path``.
    """
    path, temporary = Path(path), None
    try:
        with _name_path(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
            os.close(handle)
            temporary = Path(name)
        with _name_path(path, NO_ROOM):
            yield temporary
        with _name_path(path):
            with temporary.open("rb") as written:
                os.fsync(written.fileno())  # else a power cut could leave the new name with no content
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write a UTF-8 file so that readers see the old content or the new, never a part.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


@contextmanager
def atomic_folder(folder: str | Path, inputs: Iterable[str | Path] = (), known: Collection[str] = ()) -> Iterator[Path]:
    """Give an empty temporary folder, which replaces ``folder`` when the context ends without an error.

    Only what this package made is replaced, see ``check_output``. The temporary folder of a killed process,
    ``.NAME.partial``, is removed by the next one that writes ``folder``.

    Args:
        folder: the folder to make or to replace.
        inputs: what is read to make it.
        known: patterns of the names that an older version wrote into it.

    Yields:
        The folder to write into.

    Raises:
        ValueError: the folder holds something else, or overlaps an input.
        OSError: it cannot be written, e.g. because the disk is full; the message names ``folder``.
    """
    real = Path(os.path.realpath(folder))
    partial, previous = real.with_name(f".{real.name}.partial"), real.with_name(f".{real.name}.previous")
    with _name_path(real):
        if previous.exists() and not real.exists():
            os.replace(previous, real)  # killed between the two renames below
        check_output(folder, inputs, known)
        check_output(previous, known=known)
        if partial.exists() and not (partial / MARKER).is_file():
            raise ValueError(f"{partial} was not made by this program: move it away")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / MARKER).touch()
    try:
        with _name_path(real, NO_ROOM):
            yield partial
            mark(partial)
        with _name_path(real):
            shutil.rmtree(previous, ignore_errors=True)
            if real.exists():
                os.replace(real, previous)
            os.replace(partial, real)
            shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def dir_lock(folder: str | Path) -> Iterator[None]:
    """Lock a folder against other processes; the lock ends with the context or the process.

    Args:
        folder: the folder, made if it does not exist; an empty file ``LOCK`` stays in it.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: it cannot be written to.
    """
    file = Path(folder) / LOCK
    with _name_path(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.open("w")
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, child processes do not inherit it
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                message = f"{folder} is in use by another process: wait for it or stop it"
                raise BlockingIOError(error.errno, message) from error
            logging.warning(
                f"cannot lock {folder} ({os.strerror(error.errno)}): start no second process that writes there"
            )
        yield


@contextmanager
def _name_path(path: Path, numbers: Container[int] | None = None) -> Iterator[None]:
    """Re-raise system errors with the target path and a hint.

    Args:
        path: the file or folder that is written.
        numbers: error numbers to re-raise in this form; None: all.
    """
    try:
        yield
    except Exception as error:
        cause = _system_error(error)
        if cause is None or (numbers is not None and cause.errno not in numbers):
            raise
        reason = os.strerror(cause.errno) if cause.errno else cause
        message = f"cannot write {path}: {reason}: check free space and permissions; the old content is unchanged"
        raise OSError(cause.errno, message) from error


def _system_error(error: BaseException) -> OSError | None:
    """Find the system error behind a library's: safetensors gives its number, torch raises its own after it."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return _system_error(error.__context__) if error.__context__ is not None else None

"""Files and folders appear whole or not at all, and messages name them."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BOUND, full_disk, room_for
from safetensors.torch import save_file

from espnet_lole.atomic_io import atomic_folder, atomic_write, dir_lock, write_text_atomic
from espnet_lole.data.audio import write_audio


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_atomic(tmp_path / "a.txt", "old")
    for step in ("os.replace", "os.fsync", "pathlib.Path.write_text"):
        with monkeypatch.context() as patched, pytest.raises(OSError, match="a.txt: No space left on device: check"):
            patched.setattr(step, full_disk)
            write_text_atomic(tmp_path / "a.txt", "new")
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"
    write_text_atomic(tmp_path / "a.txt", "new\n")
    assert (tmp_path / "a.txt").read_bytes() == b"new\n"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write .*file/a: "):
        write_text_atomic(tmp_path / "file" / "a", "")
    with pytest.raises(OSError, match="cannot write .*file/a: "), atomic_folder(tmp_path / "file" / "a"):
        pass


def save_by_torch(file: Path) -> None:
    with file.open("wb") as out:
        torch.save(torch.zeros(9999), out)


WRITERS = {
    "a.txt": lambda file: file.write_bytes(bytes(9999)),
    "a.safetensors": lambda file: save_file({"a": torch.zeros(9999)}, file),
    "a.pth": save_by_torch,
    "a.flac": lambda file: write_audio(file, np.random.default_rng(0).uniform(-1, 1, 9999)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_whichever_library_writes(tmp_path: Path, name: str) -> None:
    write_text_atomic(tmp_path / name, "old")
    (tmp_path / "d").mkdir()
    reason = f"{os.strerror(errno.EFBIG)}: check free space"
    with room_for(5000):
        with (
            pytest.raises(OSError, match=f"cannot write {tmp_path / name}: {reason}"),
            atomic_write(tmp_path / name) as file,
        ):
            WRITERS[name](file)
        with (
            pytest.raises(OSError, match=f"cannot write {tmp_path / 'd'}: {reason}"),
            atomic_folder(tmp_path / "d") as folder,
        ):
            WRITERS[name](folder / name)
    assert (tmp_path / name).read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "d"])


@pytest.mark.parametrize("write", ["write_text_atomic('{}/a', 'new')", "atomic_folder('{}/a').__enter__()"])
def test_a_read_only_folder_is_named_and_keeps_its_files(tmp_path: Path, write: str) -> None:
    (tmp_path / "b").write_text("old")
    tmp_path.chmod(0o555)
    command = [*BOUND, sys.executable, "-c", f"from espnet_lole.atomic_io import *; {write.format(tmp_path)}"]
    done = subprocess.run(command, capture_output=True, text=True)
    tmp_path.chmod(0o755)
    message = (
        f"PermissionError: [Errno 13] cannot write {tmp_path}/a: Permission denied: check free space and permissions"
    )
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "a file to read")])
@pytest.mark.parametrize("context", [atomic_write, atomic_folder])
def test_an_error_of_another_kind_passes_unchanged(tmp_path: Path, context: Callable, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, context(tmp_path / "a"):
        raise error
    assert raised.value is error and not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [1, 2])
def test_a_folder_killed_between_its_renames_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Before the first rename the old folder is in place; after it the next writer restores it."""
    with atomic_folder(tmp_path / "d") as folder:
        (folder / "a").write_text("old")
    rename, calls = os.replace, []

    def killed(*names: object) -> None:
        calls.append(names)
        if len(calls) == stop:
            raise KeyboardInterrupt
        rename(*names)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "d") as folder:
        patched.setattr("os.replace", killed)
        (folder / "a").write_text("new")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "d"):
        raise KeyError("x")
    assert (tmp_path / "d" / "a").read_text() == "old"


def test_a_folder_is_locked_by_one_process_and_free_when_it_is_killed(tmp_path: Path) -> None:
    """Even if a child of the killed process lives on, as a process that reads the data may."""
    code = f"""
import os, time
from espnet_lole.atomic_io import dir_lock
with dir_lock({str(tmp_path / "a")!r}):
    if os.fork() == 0:
        os.close(1)
        time.sleep(30)
        os._exit(0)
    print('locked', flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"locked\n"
        with (
            pytest.raises(BlockingIOError, match="/a is in use by another process: wait for it"),
            dir_lock(tmp_path / "a"),
        ):
            pass
        holder.kill()
        holder.wait()
        with dir_lock(tmp_path / "a"):
            pass


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("espnet_lole.atomic_io.fcntl.lockf", refuse)
    with dir_lock(tmp_path / "a"):
        pass
    assert f"cannot lock {tmp_path / 'a'} (No locks available)" in caplog.text

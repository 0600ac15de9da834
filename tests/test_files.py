import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BOUND, full_disk

from espnet_lole.files import whole_file, whole_folder, write_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.txt", "old")

    for step in ("os.replace", "os.fsync", "pathlib.Path.write_text"):
        with monkeypatch.context() as patched, pytest.raises(OSError, match="a.txt, got: No space left on device: check"):
            patched.setattr(step, full_disk)
            write_whole(tmp_path / "a.txt", "new")
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"
    write_whole(tmp_path / "a.txt", "new\n")
    assert (tmp_path / "a.txt").read_bytes() == b"new\n"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="expected to write .*file/a, got: "):
        write_whole(tmp_path / "file" / "a", "")
    with pytest.raises(OSError, match="expected to write .*file/a, got: "), whole_folder(tmp_path / "file" / "a"):
        pass


@pytest.mark.parametrize("write", ["write_whole('{}/a', 'new')", "whole_folder('{}/a').__enter__()"])
def test_a_read_only_folder_is_named_and_keeps_what_it_has(tmp_path: Path, write: str) -> None:
    (tmp_path / "b").write_text("old")
    tmp_path.chmod(0o555)
    command = [*BOUND, sys.executable, "-c", f"from espnet_lole.files import *; {write.format(tmp_path)}"]
    done = subprocess.run(command, capture_output=True, text=True)
    tmp_path.chmod(0o755)
    wanted = f"PermissionError: [Errno 13] expected to write {tmp_path}/a, got: Permission denied: check the disk's free space"
    assert done.returncode == 1 and wanted in done.stderr.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


def test_an_error_of_another_kind_passes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole_file(tmp_path / "a"):
        raise KeyError("x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [1, 2])
def test_a_folder_killed_between_its_renames_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """Killed before the first rename the old folder is there, before the second the next writer brings it back."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("old")
    plain, calls = os.replace, []

    def killed(*names: object) -> None:
        calls.append(names)
        if len(calls) == stop:
            raise KeyboardInterrupt
        plain(*names)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "d") as made:
        patched.setattr("os.replace", killed)
        (made / "a").write_text("new")
    with pytest.raises(KeyError), whole_folder(tmp_path / "d"):
        raise KeyError("x")
    assert (tmp_path / "d" / "a").read_text() == "old"

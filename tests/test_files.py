import errno
import os
from pathlib import Path

import pytest

from espnet_lole.files import whole_file, whole_folder, write_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.txt", "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in ("os.replace", "os.fsync", "pathlib.Path.write_text"):
        with monkeypatch.context() as patched, pytest.raises(OSError, match="a.txt, got: No space left on device: check"):
            patched.setattr(step, full)
            write_whole(tmp_path / "a.txt", "new")
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"
    write_whole(tmp_path / "a.txt", "new\n")
    assert (tmp_path / "a.txt").read_bytes() == b"new\n"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="expected to write .*file/a, got: "):
        write_whole(tmp_path / "file" / "a", "")


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

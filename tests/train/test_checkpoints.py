import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from conftest import Evil, full_disk, room_for
from espnet2.train.reporter import Reporter

from espnet_lole.train.checkpoints import intact, read_checkpoint, recover, whole_saves

CRITERIA = [("valid", "acc", "max")]


def save_epochs(folder: Path, accuracies: list[float]) -> None:
    """A checkpoint after each epoch, as ESPnet's trainer writes it, but for the files of the last epoch."""
    reporter = Reporter()
    for epoch, accuracy in enumerate(accuracies, start=1):
        with reporter.observe("valid", epoch) as observed:
            observed.register({"acc": torch.tensor(accuracy)})
            observed.next()
        with whole_saves():
            torch.save(
                {"model": {"w": torch.tensor([accuracy])}, "reporter": reporter.state_dict()}, folder / "checkpoint.pth"
            )


def test_a_killed_epoch_gets_its_files_and_links(tmp_path):
    save_epochs(tmp_path, [0.1, 0.5, 0.2])
    with whole_saves():
        recover(tmp_path, CRITERIA)
    assert torch.load(tmp_path / "3epoch.pth") == {"w": torch.tensor([0.2])}
    assert (
        os.readlink(tmp_path / "latest.pth") == "3epoch.pth"
        and os.readlink(tmp_path / "valid.acc.best.pth") == "2epoch.pth"
    )


@pytest.mark.parametrize("damage", ["truncated", "a bit", "empty"])
def test_a_broken_checkpoint_gives_way_to_the_one_before(tmp_path, damage, caplog):
    save_epochs(tmp_path, [0.1, 0.5])
    data = bytearray((tmp_path / "checkpoint.pth").read_bytes())
    where = data.index(torch.tensor([0.5]).numpy().tobytes())
    data[where] ^= 1
    broken = {"truncated": data[: len(data) // 2], "a bit": data, "empty": b""}[damage]
    (tmp_path / "checkpoint.pth").unlink()  # a second name must not change with it
    (tmp_path / "checkpoint.pth").write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        recover(tmp_path, CRITERIA)
    assert "is broken: training goes on from the one before" in caplog.text
    assert read_checkpoint(tmp_path / "checkpoint.pth")["model"] == {"w": torch.tensor([0.1])}
    assert intact(tmp_path / "1epoch.pth") and os.readlink(tmp_path / "latest.pth") == "1epoch.pth"
    for name in ("checkpoint.pth", "previous.pth"):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(broken)
    with pytest.raises(ValueError, match="got both broken"):
        recover(tmp_path, CRITERIA)


def test_a_save_that_fails_leaves_both_checkpoints(tmp_path, monkeypatch):
    save_epochs(tmp_path, [0.1, 0.5])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with room_for(500), pytest.raises(OSError, match="checkpoint.pth, got: File too large"):
        save_epochs(tmp_path, [0.7])
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="checkpoint.pth, got: No space left on device"):
        save_epochs(tmp_path, [0.7])
    assert before["checkpoint.pth"] == (tmp_path / "checkpoint.pth").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == set(before)


def test_nothing_to_recover_is_no_error(tmp_path):
    (tmp_path / ".checkpoint.x.pth").write_text("half-written")
    recover(tmp_path, CRITERIA)
    assert not list(tmp_path.iterdir())


def test_a_malicious_pickle_is_not_run(tmp_path):
    torch.save({"model": Evil(tmp_path / "ran")}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="got other objects in .*checkpoint.pth"):
        read_checkpoint(tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="got other objects"):
        recover(tmp_path, CRITERIA)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(ValueError, match="got a broken one"):
        read_checkpoint(tmp_path / "plain.pth")
    with pytest.raises(FileNotFoundError, match="found none: train first"):
        read_checkpoint(tmp_path / "none.pth")
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert (tmp_path / "ran").exists()  # it would have run

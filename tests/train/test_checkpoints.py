"""Recovery from a kill at any write, and refusal of files that are broken or could run code."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from conftest import Evil
from espnet2.train.reporter import Reporter

from espnet_lole.train.checkpoints import best_checkpoints, is_intact, keep_previous, read_checkpoint, recover

CRITERIA = [("valid", "acc", "max")]


def save_epochs(folder: Path, accuracies: list[float]) -> None:
    """Write the checkpoint of each epoch in the place of the one before, and no other file."""
    reporter = Reporter()
    for epoch, accuracy in enumerate(accuracies, start=1):
        with reporter.observe("valid", epoch) as observed:
            observed.register({"acc": torch.tensor(accuracy)})
            observed.next()
        keep_previous(folder)
        states = {"model": {"w": torch.tensor([accuracy])}, "reporter": reporter.state_dict()}
        torch.save(states, folder / "checkpoint.pth")


def epochs_in(folder: Path) -> dict[str, float]:
    """Return the weight in each checkpoint."""
    return {name: float(read_checkpoint(folder / name)["model"]["w"]) for name in ("previous.pth", "checkpoint.pth")}


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(torch.tensor([0.5]).numpy().tobytes())] ^= 1
    file.write_bytes({"truncated": data[: len(data) // 2], "one bit": data, "empty": b""}[how])


def test_the_previous_checkpoint_is_there_while_the_next_is_written(tmp_path):
    save_epochs(tmp_path, [0.1, 0.5])
    assert epochs_in(tmp_path) == pytest.approx({"previous.pth": 0.1, "checkpoint.pth": 0.5})
    keep_previous(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["previous.pth"]
    keep_previous(tmp_path)  # killed before the write, and resumed
    recover(tmp_path, CRITERIA)
    assert read_checkpoint(tmp_path / "checkpoint.pth")["model"] == {"w": torch.tensor([0.5])}


def test_the_files_and_links_of_a_killed_epoch_are_completed(tmp_path):
    save_epochs(tmp_path, [0.1, 0.5, 0.2])
    (tmp_path / "3epoch.pth").write_bytes(b"half")
    recover(tmp_path, CRITERIA)
    assert torch.load(tmp_path / "3epoch.pth") == {"w": torch.tensor([0.2])}
    assert os.readlink(tmp_path / "latest.pth") == "3epoch.pth"
    assert os.readlink(tmp_path / "valid.acc.best.pth") == "2epoch.pth"


@pytest.mark.parametrize("how", ["truncated", "one bit", "empty"])
def test_a_broken_checkpoint_is_replaced_by_the_one_before(tmp_path, how, caplog):
    save_epochs(tmp_path, [0.1, 0.5])
    damage(tmp_path / "checkpoint.pth", how)
    with caplog.at_level(logging.WARNING):
        recover(tmp_path, CRITERIA)
    assert "checkpoint.pth is incomplete: training goes on from the epoch before it" in caplog.text
    assert read_checkpoint(tmp_path / "checkpoint.pth")["model"] == {"w": torch.tensor([0.1])}
    assert is_intact(tmp_path / "1epoch.pth") and os.readlink(tmp_path / "latest.pth") == "1epoch.pth"


def test_two_broken_checkpoints_are_refused(tmp_path):
    save_epochs(tmp_path, [0.5, 0.5])
    (tmp_path / "1epoch.pth").touch()
    for name in ("checkpoint.pth", "previous.pth"):
        damage(tmp_path / name, "one bit")
    with pytest.raises(ValueError, match=r"checkpoint.pth and .*previous.pth are both broken: remove them to train"):
        recover(tmp_path, CRITERIA)


def test_training_starts_again_after_a_kill_within_the_first_write(tmp_path):
    save_epochs(tmp_path, [0.5])
    damage(tmp_path / "checkpoint.pth", "truncated")
    recover(tmp_path, CRITERIA)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_checkpoints_is_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    recover(tmp_path, CRITERIA)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_each_language_has_its_own_best_checkpoint_or_the_shared_one(tmp_path):
    for name in ("1epoch.pth", "2epoch.pth", "3epoch.pth"):
        (tmp_path / name).touch()
    for name, target in (("acc", 3), ("acc_de", 1), ("acc_en", 2), ("loss_fr", 1)):
        (tmp_path / f"valid.{name}.ave.pth").symlink_to(f"{target}epoch.pth")
    best = best_checkpoints(tmp_path, [("valid", "acc", "max"), ("valid", "loss", "min")], ["de", "en", "fr"])
    assert {lang: file.name for lang, file in best.items()} == {
        "de": "1epoch.pth",
        "en": "2epoch.pth",
        "fr": "3epoch.pth",
    }


def test_a_malicious_pickle_is_not_run(tmp_path):
    torch.save({"model": Evil(tmp_path / "ran")}, tmp_path / "checkpoint.pth")
    for read in (lambda: read_checkpoint(tmp_path / "checkpoint.pth"), lambda: recover(tmp_path, CRITERIA)):
        with pytest.raises(ValueError, match="got other objects in .*checkpoint.pth, which were not loaded"):
            read()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(ValueError, match="got a broken one"):
        read_checkpoint(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert (tmp_path / "ran").exists()  # it would have run
    with pytest.raises(FileNotFoundError, match="found none: train first"):
        read_checkpoint(tmp_path / "none.pth")

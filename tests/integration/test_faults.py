"""Training that is killed, loses a data worker or meets NaN."""

from __future__ import annotations

import os
import re
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from trainings import Trainings

from espnet_lole.atomic_io import dir_lock
from espnet_lole.ownership import MARKER
from espnet_lole.tasks.lole import LoLEPreprocessor
from espnet_lole.train.checkpoints import is_intact, read_checkpoint

pytestmark = pytest.mark.slow


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_save(number: int, moment: str) -> None:
    """The process kills itself before, within or after its n-th write of a checkpoint."""
    save, files = torch.save, []

    def save_until_killed(states: object, file: Path) -> None:
        files.append(file)
        if len(files) == number and moment == "before":
            kill()
        save(states, file)
        if len(files) == number:
            if moment == "within":
                os.truncate(file, os.path.getsize(file) // 2)
            kill()

    torch.save = save_until_killed


def kill_at_adapter(lang: str) -> None:
    """The process kills itself before a language's adapter gets its name."""
    replace = os.replace

    def replace_until_killed(source: object, target: object) -> None:
        if Path(target).name == lang:
            kill()
        replace(source, target)

    os.replace = replace_until_killed


def kill_worker(checkpoint: Path) -> None:
    """A worker that reads data is killed once there is a checkpoint."""
    prepare = LoLEPreprocessor.__call__

    def prepare_until_killed(self: LoLEPreprocessor, uid: str, data: dict) -> dict:
        if torch.utils.data.get_worker_info() is not None and checkpoint.exists():
            kill()
        return prepare(self, uid, data)

    LoLEPreprocessor.__call__ = prepare_until_killed


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> Trainings:
    """Include a training without a fault, ``straight``."""
    made = Trainings(tmp_path_factory.mktemp("faults"))
    made.train("straight")
    return made


def check_same(trainings: Trainings, output: str) -> None:
    """Check that a training ended as the one without a fault."""
    straight, other = trainings.adapters("straight"), trainings.adapters(output)
    assert straight.keys() == other.keys() and any(value.any() for name, value in straight.items() if "lora_B" in name)
    assert all(torch.equal(straight[name], other[name]) for name in straight)
    last = [read_checkpoint(trainings.folder / name / "checkpoint.pth")["model"] for name in ("straight", output)]
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())


def test_killed_at_every_write_it_ends_with_the_same_weights(trainings):
    """Three epochs write two checkpoints each, and a resumed training the one that is missing."""
    faults = [partial(kill_at_save, *at) for at in ((1, "within"), (1, "after"), (2, "within"), (2, "within"))]
    faults += [partial(kill_at_save, *at) for at in ((2, "before"), (2, "before"), (1, "within"))]
    faults += [partial(kill_at_adapter, "tr")]
    for fault in faults:
        status, log = trainings.run("killed", fault=fault)
        assert status == -signal.SIGKILL, f"{fault}: {log[-2000:]}"
    trainings.train("killed")
    check_same(trainings, "killed")
    folder = trainings.folder / "killed"
    assert {p.name for p in folder.rglob(".*")} == {".lock", MARKER}
    assert os.readlink(folder / "latest.pth") == "3epoch.pth"


def test_workers_that_read_do_not_change_the_weights(trainings):
    trainings.train("workers", "--num_workers", "2")
    check_same(trainings, "workers")


def test_a_killed_data_worker_is_explained_and_training_goes_on(trainings):
    folder = trainings.folder / "lonely"
    status, log = trainings.run("lonely", "--num_workers", "2", fault=partial(kill_worker, folder / "checkpoint.pth"))
    last = log.strip().splitlines()[-1]
    assert status == 1 and last.startswith("RuntimeError: a process that reads the data died"), log[-3000:]
    assert "is killed by signal: Killed): most often memory ran out" in last and "the same command goes on" in last
    assert is_intact(folder / "checkpoint.pth") and is_intact(folder / "1epoch.pth")
    assert not (folder / "2epoch.pth").exists()
    log = trainings.train("lonely", "--num_workers", "2")
    assert "2/3epoch started" in log and "1/3epoch started" not in log
    check_same(trainings, "lonely")


def test_a_truncated_checkpoint_is_replaced_by_the_one_before(trainings):
    trainings.train("truncated")
    checkpoint = trainings.folder / "truncated" / "checkpoint.pth"
    os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    assert "goes on from the epoch before it" in trainings.train("truncated")
    check_same(trainings, "truncated")


def test_another_training_in_the_folder_is_refused_before_it_changes_a_file(trainings):
    before = {file: file.stat().st_mtime_ns for file in (trainings.folder / "straight").rglob("*") if file.is_file()}
    status, log = trainings.run("straight", "--optim_conf", "lr=0.5")
    last = log.strip().splitlines()[-1]
    assert status == 1 and re.search("ValueError: .*straight holds another training: optim_conf.lr: .*, now 0.5", last)
    assert {file: file.stat().st_mtime_ns for file in before} == before | {
        file: file.stat().st_mtime_ns for file in before if file.name == ".lock"
    }


def test_one_language_without_finite_audio_does_not_stop_the_other(trainings):
    wav = trainings.data / "u1.wav"  # of de
    before = wav.read_bytes()
    samples, rate = soundfile.read(wav)
    try:
        soundfile.write(wav, np.full_like(samples, np.nan), rate, subtype="FLOAT")
        log = trainings.train("nan")
    finally:
        wav.write_bytes(before)
    assert "the gradient of de is not finite: this step does not move its expert" in log
    assert "updates of experts left out because their gradient was not finite: de 1" in log
    adapters = trainings.adapters("nan")
    assert all(value.isfinite().all() for value in adapters.values())
    assert any(value.any() for name, value in adapters.items() if name.startswith("tr") and "lora_B" in name)


def test_a_missing_audio_file_is_named(trainings):
    wav = trainings.data / "u2.wav"
    hidden = wav.rename(wav.with_suffix(".hidden"))
    try:
        status, log = trainings.run("missing")
    finally:
        hidden.rename(wav)
    assert status != 0 and "u2.wav" in log


def test_a_second_training_in_a_folder_is_refused(trainings):
    with dir_lock(trainings.folder / "busy"):
        status, log = trainings.run("busy")
    assert status == 1 and "busy" in log.strip().splitlines()[-1]

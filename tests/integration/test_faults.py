"""Training that is killed, loses a data worker or meets NaN, through the command, on a tiny random Whisper."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import tiny_whisper

from espnet_lole.data.kaldi import write_table
from espnet_lole.tasks.lole import LoLEPreprocessor, LoLETask
from espnet_lole.train.checkpoints import intact

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["espnet_lole.tasks.lole"])  # imported once for all the trainings of this file


def train(options: list[str], log: Path, fault: Callable[[], None]) -> None:
    """The command with a fault, in a process of its own."""
    with log.open("w") as out:
        os.dup2(out.fileno(), 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as in the command itself
    fault()
    LoLETask.main(cmd=options)


def no_fault() -> None:
    pass


def kill_at(number: int, moment: str) -> None:
    """The process kills itself at a write of a checkpoint, before or after the file has its name."""
    plain, calls = os.replace, []

    def replace(source: object, target: object) -> None:
        calls.extend([target] if str(target).endswith(".pth") else [])
        if calls and len(calls) == number:
            if moment == "after":
                plain(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        plain(source, target)

    os.replace = replace


def kill_worker(checkpoint: Path) -> None:
    """A worker that reads data is killed once there is a checkpoint."""
    plain = LoLEPreprocessor.__call__

    def prepare(self: LoLEPreprocessor, uid: str, data: dict) -> dict:
        if torch.utils.data.get_worker_info() is not None and checkpoint.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, uid, data)

    LoLEPreprocessor.__call__ = prepare


class Training:
    """Four noisy utterances of two languages, and the command that trains on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny_whisper().save_pretrained(folder / "tiny")
        conf = yaml.safe_load((ROOT / "conf" / "mini" / "train_experts.yaml").read_text())
        conf |= {"expert_conf": {"rank": 2, "alpha": 4.0}, "max_epoch": 3, "num_workers": 0, "use_tensorboard": False}
        conf |= {"batch_bins": 20000, "precision": "float32"}
        (folder / "train.yaml").write_text(yaml.safe_dump(conf))
        generator, data = np.random.default_rng(0), folder / "data"
        data.mkdir()
        utts = {f"u{i}": "de" if i % 2 else "tr" for i in range(6)}
        for utt in utts:
            soundfile.write(data / f"{utt}.wav", generator.normal(0, 0.1, 8000), 16000)
        write_table(data / "wav.scp", {utt: str(data / f"{utt}.wav") for utt in utts})
        write_table(data / "text", dict.fromkeys(utts, "ja nein"))
        write_table(data / "utt2lang", utts)
        write_table(data / "shape", dict.fromkeys(utts, 8000))

    def options(self, output: str) -> list[str]:
        made = [
            "--config",
            str(self.folder / "train.yaml"),
            "--backbone",
            str(self.folder / "tiny"),
            "--langs",
            "de",
            "tr",
        ]
        made += ["--resume", "true", "--output_dir", str(self.folder / output)]
        for part in ("train", "valid"):
            made += [f"--{part}_shape_file", str(self.folder / "data" / "shape")]
            for file, name, kind in (
                ("wav.scp", "speech", "sound"),
                ("text", "text", "text"),
                ("utt2lang", "lang", "text"),
            ):
                made += [f"--{part}_data_path_and_name_and_type", f"{self.folder / 'data' / file},{name},{kind}"]
        return made

    def run(self, output: str, *more: str, fault: Callable[[], None] = no_fault) -> tuple[int, str]:
        """Exit status and log of a run."""
        log = self.folder / f"{output}.log"
        process = PROCESSES.Process(target=train, args=([*self.options(output), *more], log, fault))
        process.start()
        process.join(600)
        return process.exitcode, log.read_text()

    def train(self, output: str, *more: str) -> str:
        status, told = self.run(output, *more)
        assert status == 0, told[-3000:]
        return told

    def weights(self, output: str) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / output / "valid.acc.ave.pth", weights_only=True)


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Training:
    made = Training(tmp_path_factory.mktemp("faults"))
    made.train("straight")
    return made


def check_same(training: Training, output: str) -> None:
    straight, other = training.weights("straight"), training.weights(output)
    assert straight.keys() == other.keys()
    assert all(torch.equal(straight[name], other[name]) for name in straight)


def test_killed_at_every_write_it_ends_with_the_same_figures(training):
    """Three epochs write six files: each run is killed at one of its writes, before or after the file has its name."""
    for number, moment in ((1, "before"), (1, "after"), (2, "before"), (3, "after"), (2, "after")):
        status, told = training.run("killed", fault=partial(kill_at, number, moment))
        assert status == -signal.SIGKILL, told[-2000:]
    training.train("killed")
    check_same(training, "killed")
    left = [p.name for p in (training.folder / "killed").iterdir()]
    assert (
        "latest.pth" in left
        and not any(name.startswith(".") for name in left if name != ".lock")
        and os.readlink(training.folder / "killed" / "latest.pth") == "3epoch.pth"
    )


def test_workers_that_read_do_not_change_the_figures(training):
    training.train("workers", "--num_workers", "2")
    check_same(training, "workers")


def test_a_killed_data_worker_is_told_and_training_goes_on(training):
    folder = training.folder / "lonely"
    status, told = training.run("lonely", "--num_workers", "2", fault=partial(kill_worker, folder / "checkpoint.pth"))
    last = told.strip().splitlines()[-1]
    assert status == 1 and last.startswith("RuntimeError: expected the processes that read the data to live as long"), (
        told[-3000:]
    )
    assert "is killed by signal: Killed: most often memory ran out" in last and "the same command goes on" in last
    assert intact(folder / "checkpoint.pth") and intact(folder / "1epoch.pth") and not (folder / "2epoch.pth").exists()
    told = training.train("lonely", "--num_workers", "2")
    assert "2/3epoch started" in told and "1/3epoch started" not in told
    check_same(training, "lonely")


def test_a_truncated_checkpoint_gives_way_to_the_one_before(training):
    training.train("truncated")
    checkpoint = training.folder / "truncated" / "checkpoint.pth"
    data = checkpoint.read_bytes()
    checkpoint.unlink()
    checkpoint.write_bytes(data[: len(data) // 2])
    assert "goes on from the one before it" in training.train("truncated")
    check_same(training, "truncated")


def test_one_language_without_finite_audio_does_not_stop_the_other(training):
    wav = training.folder / "data" / "u1.wav"  # of de
    before = wav.read_bytes()
    samples, rate = soundfile.read(wav)
    try:
        soundfile.write(wav, np.full_like(samples, np.nan), rate, subtype="FLOAT")
        told = training.train("nan")
    finally:
        wav.write_bytes(before)
    assert "the gradient of de is not finite: the step does not move this expert" in told
    assert all(value.isfinite().all() for value in training.weights("nan").values())
    moved = [value[1].abs().max() for name, value in training.weights("nan").items() if "lora_B" in name]
    assert max(moved) > 0


def test_a_missing_audio_file_is_named(training):
    wav = training.folder / "data" / "u2.wav"
    hidden = wav.rename(wav.with_suffix(".hidden"))
    try:
        status, told = training.run("missing")
    finally:
        hidden.rename(wav)
    assert status != 0 and "u2.wav" in told

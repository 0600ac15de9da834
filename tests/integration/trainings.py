"""Trainings by the command, each in a process of its own, on a tiny random Whisper and noise."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml
from conftest import random_experts, tiny_whisper
from safetensors.torch import load_file

from espnet_lole.bin import lole_train
from espnet_lole.config import config_files
from espnet_lole.data.kaldi import write_table
from espnet_lole.lole.adapters import save_adapter

CONF = Path(__file__).resolve().parents[2] / "conf" / "mini"
COMMON = {"max_epoch": 3, "num_workers": 0, "use_tensorboard": False, "batch_bins": 20000, "precision": "float32"}
SMALL = {
    "experts": {"expert_conf": {"rank": 2, "alpha": 4.0}},
    "mole": {"fusion_conf": {"shared_layers": 2}, "classifier_conf": {"hidden": 8, "dropout": 0.0, "replay": 0}},
    "student": {"expert_conf": {"rank": 4, "alpha": 8.0}},
}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["espnet_lole.tasks.lole"])  # imported once for all trainings


def no_fault() -> None:
    """Leave the training alone."""


def run_command(options: list[str], log: Path, fault: Callable[[], None] = no_fault) -> None:
    """Run the command with a fault, in a process of its own."""
    with log.open("w") as out:
        os.dup2(out.fileno(), 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as in the command itself
    fault()
    lole_train.main(options)


class Trainings:
    """Six noisy utterances of two languages, prepared experts, and the command that trains on them.

    Args:
        folder: of the data and of all trainings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        tiny_whisper().save_pretrained(folder / "tiny")
        experts = random_experts(("de", "tr"), rank=2)
        for lang in experts.languages:
            save_adapter(experts, lang, folder / "experts" / lang, "tiny")
        for system, conf in SMALL.items():
            (folder / f"train_{system}.yaml").write_text(yaml.safe_dump(COMMON | conf))
        generator = np.random.default_rng(0)
        self.data.mkdir()
        utts = {f"u{i}": "de" if i % 2 else "tr" for i in range(6)}
        for utt in utts:
            soundfile.write(self.data / f"{utt}.wav", generator.normal(0, 0.1, 8000), 16000)
        write_table(self.data / "wav.scp", {utt: str(self.data / f"{utt}.wav") for utt in utts})
        write_table(self.data / "text", dict.fromkeys(utts, "ja nein"))
        write_table(self.data / "utt2lang", utts)
        write_table(self.data / "shape", dict.fromkeys(utts, 8000))

    def options(self, output: str, system: str = "experts") -> list[str]:
        """Return the options of a training that resumes in a folder."""
        files = [*config_files(CONF / f"train_{system}.yaml"), self.folder / f"train_{system}.yaml"]
        given = ["--config", *map(str, files), "--system", system, "--backbone", str(self.folder / "tiny")]
        given += ["--langs", "de", "tr", "--resume", "true", "--output_dir", str(self.folder / output)]
        given += [] if system == "experts" else ["--experts", str(self.folder / "experts")]
        for part in ("train", "valid"):
            given += [f"--{part}_shape_file", str(self.data / "shape")]
            for file, name, kind in (
                ("wav.scp", "speech", "sound"),
                ("text", "text", "text"),
                ("utt2lang", "lang", "text"),
            ):
                given += [f"--{part}_data_path_and_name_and_type", f"{self.data / file},{name},{kind}"]
        return given

    def run(self, output: str, *more: str, fault: Callable[[], None] = no_fault) -> tuple[int, str]:
        """Return exit status and log of a training of experts."""
        log = self.folder / f"{output}.log"
        process = PROCESSES.Process(target=run_command, args=([*self.options(output), *more], log, fault))
        process.start()
        process.join(600)
        return process.exitcode, log.read_text()

    def train(self, output: str, *more: str) -> str:
        """Return the log of a training that succeeds."""
        status, log = self.run(output, *more)
        assert status == 0, log[-3000:]
        return log

    def adapters(self, output: str) -> dict[str, torch.Tensor]:
        """Return the tensors of the adapters that a training has left."""
        folders = sorted((self.folder / output / "adapters").iterdir())
        return {
            f"{folder.name} {name}": value
            for folder in folders
            for name, value in load_file(folder / "adapter_model.safetensors").items()
        }

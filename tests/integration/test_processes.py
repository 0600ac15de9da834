"""Two processes on a CPU train as one does, from the first batch to the last, through the command, on a tiny random Whisper."""

from __future__ import annotations

import logging
import math
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import random_experts, tiny_whisper
from espnet2.train import trainer
from test_faults import PROCESSES, ROOT, Training

from espnet_lole.lole.adapters import save_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.tasks.lole import LoLETask

pytestmark = pytest.mark.slow
COMMON = {"max_epoch": 2, "num_workers": 0, "use_tensorboard": False, "precision": "float32", "batch_bins": 20000}
SYSTEMS = {
    "experts": {"expert_conf": {"rank": 2, "alpha": 4.0}},
    "mole": {"fusion_conf": {"shared_layers": 2}, "classifier_conf": {"hidden": 8, "dropout": 0.0}},
    "student": {"expert_conf": {"rank": 4, "alpha": 8.0}},
}


def train(options: list[str], log: Path, left: Path) -> None:
    """The command in a process of its own, which leaves the weights and all figures that it ended with."""
    with log.open("w") as out:
        os.dup2(out.fileno(), 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    models, reporters = [], []
    build, reporter = LoLETask.build_model, trainer.Reporter
    LoLETask.build_model = lambda args: models.append(build(args)) or models[0]
    trainer.Reporter = lambda: reporters.append(reporter()) or reporters[0]
    LoLETask.main(cmd=options)
    epochs = reporters[0].state_dict()["stats"]
    figures = {
        (epoch, phase, key): float(value)
        for epoch, phases in epochs.items()
        for phase, values in phases.items()
        for key, value in values.items()
        if not key.endswith(("time", "total_count", "cached_GB"))
    }
    torch.save({"weights": models[0].state_dict(), "figures": figures}, left)


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Training:
    made = Training(tmp_path_factory.mktemp("processes"))
    bank = random_experts(ExpertBank(tiny_whisper(), ("de", "tr"), ExpertConfig(rank=2, alpha=4.0)))
    for lang in bank.languages:
        save_expert(bank, lang, made.folder / "adapters" / lang, "tiny")
    return made


def run(training: Training, system: str, processes: int) -> list[dict]:
    """What each of the processes leaves."""
    folder = training.folder
    conf = yaml.safe_load((ROOT / "conf" / "mini" / f"train_{system}.yaml").read_text()) | COMMON | SYSTEMS[system]
    (folder / "train.yaml").write_text(yaml.safe_dump(conf))
    options = [*training.options(f"{system}{processes}"), "--system", system]
    options += [] if system == "experts" else ["--experts", str(folder / "adapters")]
    options += ["--dist_backend", "gloo", "--dist_init_method", f"file://{folder / system}.init"]
    options += ["--dist_world_size", str(processes), "--dist_rank"]
    names = [f"{system}{processes}{rank}" for rank in range(processes)]
    started = [
        PROCESSES.Process(target=train, args=([*options, str(rank)], folder / f"{name}.log", folder / f"{name}.pt"))
        for rank, name in enumerate(names)
    ]
    for process in started:
        process.start()
    for process, name in zip(started, names, strict=True):
        process.join(300)
        assert process.exitcode == 0, (folder / f"{name}.log").read_text()[-3000:]
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in names]


@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes_end_with_the_weights_and_figures_of_one(training, system):
    (one,), (first, second) = run(training, system, 1), run(training, system, 2)
    assert first["weights"].keys() == second["weights"].keys() == one["weights"].keys()
    assert first["figures"].keys() == second["figures"].keys() == one["figures"].keys()
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert all(
        math.isfinite(first["figures"][epoch, phase, "loss"]) for epoch in (1, 2) for phase in ("train", "valid")
    )
    for key, value in first["figures"].items():
        assert value == pytest.approx(second["figures"][key], rel=1e-6, nan_ok=True), key
        assert value == pytest.approx(one["figures"][key], rel=1e-4, abs=1e-5, nan_ok=True), key
    for name, value in first["weights"].items():
        torch.testing.assert_close(value, one["weights"][name], atol=1e-5, rtol=1e-4)

"""Two processes on a CPU train as one does, from the first batch to the last."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from espnet2.train import trainer
from trainings import PROCESSES, SMALL, Trainings, run_command

from espnet_lole.tasks.lole import LoLETask
from espnet_lole.train.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow


def train(options: list[str], log: Path, output: Path) -> None:
    """Run the command, and write the weights of its last epoch and all figures."""
    models, reporters = [], []
    build, reporter = LoLETask.build_model, trainer.Reporter
    LoLETask.build_model = lambda args: models.append(build(args)) or models[0]
    trainer.Reporter = lambda: reporters.append(reporter()) or reporters[0]
    run_command(options, log)
    figures = {
        (epoch, phase, key): float(value)
        for epoch, phases in reporters[0].state_dict()["stats"].items()
        for phase, values in phases.items()
        for key, value in values.items()
        if not key.endswith(("time", "total_count", "cached_GB"))
    }
    weights = models[0].state_dict()
    if options[-1] == "0":  # the first process ends with the best weights, which it writes
        folder = Path(options[options.index("--output_dir") + 1])
        weights = read_checkpoint(folder / "checkpoint.pth")["model"]
    torch.save({"weights": weights, "figures": figures}, output)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> Trainings:
    return Trainings(tmp_path_factory.mktemp("processes"))


def run(trainings: Trainings, system: str, processes: int) -> list[dict]:
    """Return what each of the processes has written."""
    folder = trainings.folder
    options = [*trainings.options(f"{system}{processes}", system), "--dist_backend", "gloo"]
    options += ["--dist_init_method", f"file://{folder / system}.init"]
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


@pytest.mark.parametrize("system", SMALL)
def test_two_processes_end_with_the_weights_and_figures_of_one(trainings, system):
    (one,), (first, second) = run(trainings, system, 1), run(trainings, system, 2)
    assert first["weights"].keys() == second["weights"].keys() == one["weights"].keys()
    assert first["figures"].keys() == second["figures"].keys() == one["figures"].keys()
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert all(
        math.isfinite(first["figures"][epoch, phase, "loss"]) for epoch in (1, 2, 3) for phase in ("train", "valid")
    )
    for key, value in first["figures"].items():
        assert value == pytest.approx(second["figures"][key], rel=1e-6, nan_ok=True), key
        assert value == pytest.approx(one["figures"][key], rel=1e-4, abs=1e-5, nan_ok=True), key
    for name, value in first["weights"].items():
        torch.testing.assert_close(value, one["weights"][name], atol=1e-5, rtol=1e-4)

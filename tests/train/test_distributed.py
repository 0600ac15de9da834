"""Two processes on a CPU train as one would with the whole batch."""

from __future__ import annotations

import pytest
import test_espnet_model
import test_espnet_mole_model
import test_espnet_student_model
import torch
from conftest import make_batch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.torch_utils.recursive_op import recursive_average

from espnet_lole.lole.experts import hold_routes

pytestmark = pytest.mark.slow
SYSTEMS = {
    "experts": test_espnet_model.make_model,
    "mole": test_espnet_mole_model.make_model,
    "student": test_espnet_student_model.make_model,
}
ROWS = [0, 1, 2, 3, 1]
"""de en de zh en: shared by two processes, zh and en are with one alone; fr is with none."""


def step(model, batch, ranks: int) -> dict:
    """Forward and backward as ESPnet's trainer does them: its weighting, and DDP's mean of the gradients."""
    loss, stats, weight = force_gatherable(model(**batch), "cpu")
    if ranks > 1:
        loss = (loss * weight).sum()
        stats, weight = recursive_average(stats, weight, True)
        loss = ranks * loss / weight
    loss.sum().backward()
    grads = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {
        "grads": grads,
        "stats": {name: value.reshape(()) for name, value in stats.items()},
        "weight": float(weight),
    }


def work(rank: int, folder: str, speech) -> None:
    """One of two processes: every system, with and without layers that are computed again."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    for name, build in SYSTEMS.items():
        for again in (False, True):
            model = build()
            batch = make_batch(model, ROWS[rank::2], speech)
            model.backbone.recompute = (lambda model=model: hold_routes(model)) if again else None
            parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=again)
            torch.save(step(parallel, batch, 2), f"{folder}/{name}{again}{rank}.pt")
    torch.distributed.destroy_process_group()


def test_losses_gradients_and_figures_are_those_of_one_process(tmp_path, speech):
    torch.multiprocessing.spawn(work, (str(tmp_path), speech), nprocs=2)
    for name, build in SYSTEMS.items():
        model = build()
        whole = step(model, make_batch(model, ROWS, speech), 1)
        for again in (False, True):
            ranks = [torch.load(tmp_path / f"{name}{again}{rank}.pt") for rank in (0, 1)]
            for part in ranks:
                assert part["weight"] == whole["weight"] == len(ROWS)
                for key, grad in whole["grads"].items():
                    torch.testing.assert_close(part["grads"][key], grad, atol=1e-3, rtol=1e-3)
                assert part["stats"].keys() == whole["stats"].keys()
                for key, value in whole["stats"].items():
                    torch.testing.assert_close(part["stats"][key], value, atol=1e-4, rtol=1e-4, equal_nan=True)

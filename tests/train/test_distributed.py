"""Two processes on a CPU train as one would with the whole batch."""

from __future__ import annotations

import pytest
import torch
from conftest import make_batch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.torch_utils.recursive_op import recursive_average
from espnet_models import ADAPTED, trained

from espnet_lole.lole.experts import LoRAExperts
from espnet_lole.tasks.lole import SYSTEM_DEFAULTS

pytestmark = pytest.mark.slow
ROWS = [0, 1, 2, 3, 1]
"""de en de zh en: shared by two processes, zh and en are with one alone; fr is with none."""


def step(model, batch, ranks: int) -> dict:
    """Run forward and backward as ESPnet's trainer does: its weighting, and DDP's mean of the gradients."""
    loss, stats, weight = force_gatherable(model(**batch), "cpu")
    if ranks > 1:
        loss = (loss * weight).sum()
        stats, weight = recursive_average(stats, weight, True)
        loss = ranks * loss / weight
    loss.sum().backward()
    grads = {name: p.grad for name, p in trained(getattr(model, "module", model)).items()}
    return {
        "grads": grads,
        "stats": {name: value.reshape(()) for name, value in stats.items()},
        "weight": float(weight),
    }


def work(rank: int, folder: str, speech) -> None:
    """Be one of two processes: every system, with and without activation checkpointing."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    for name, build in ADAPTED.items():
        unused = SYSTEM_DEFAULTS.get(name, {}).get("unused_parameters", False)
        for checkpointing in (False, True):
            model = build()
            batch = make_batch(model, ROWS[rank::2], speech)
            for module in model.modules():
                if checkpointing and isinstance(module, LoRAExperts):
                    module.checkpoint_activations()
            parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
            torch.save(step(parallel, batch, 2), f"{folder}/{name}{checkpointing}{rank}.pt")
            step(parallel, batch, 2)  # which DDP refuses if it still waits for a gradient
    torch.distributed.destroy_process_group()


def test_losses_gradients_and_figures_are_those_of_one_process(tmp_path, speech):
    torch.multiprocessing.spawn(work, (str(tmp_path), speech), nprocs=2)
    for name, build in ADAPTED.items():
        model = build()
        whole = step(model, make_batch(model, ROWS, speech), 1)
        for checkpointing in (False, True):
            ranks = [torch.load(tmp_path / f"{name}{checkpointing}{rank}.pt") for rank in (0, 1)]
            for part in ranks:
                assert part["weight"] == whole["weight"] == len(ROWS)
                for key, grad in whole["grads"].items():
                    assert (grad is None) == (part["grads"][key] is None)
                    if grad is not None:
                        torch.testing.assert_close(part["grads"][key], grad, atol=1e-3, rtol=1e-3)
                assert part["stats"].keys() == whole["stats"].keys()
                for key, value in whole["stats"].items():
                    torch.testing.assert_close(part["stats"][key], value, atol=1e-4, rtol=1e-4, equal_nan=True)

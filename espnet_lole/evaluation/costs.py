"""What a system costs, as its training and its decoding leave it in a ``costs.json``."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import torch

from espnet_lole.atomic_io import write_whole

COSTS = "costs.json"
TRAINING = ("trained_parameters", "steps", "seconds")
"""Of a training: parameters that learn, batches, and seconds with validation."""
INFERENCE = ("parameters", "memory_gb")
"""Of a decoding: parameters that it holds, and the peak of its memory."""


def write_costs(folder: Path, config: str | None, **costs: float) -> None:
    """Write ``<folder>/costs.json``.

    Args:
        folder: of the experiment, or of the decoding.
        config: its configuration file.
        costs: those of ``TRAINING`` or of ``INFERENCE``.
    """
    write_whole(folder / COSTS, json.dumps({"config": config, **costs}, indent=1) + "\n")


def read_costs(folder: Path) -> dict[str, float | str | None]:
    """What ``write_costs`` wrote; empty where nothing was: the zero-shot system has no training.

    Raises:
        ValueError: the file holds something else.
    """
    file = folder / COSTS
    if not file.is_file():
        return {}
    try:
        costs = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: expected JSON, got {error}: train or decode again") from None
    if not isinstance(costs, dict) or set(costs) - {"config", *TRAINING, *INFERENCE}:
        raise ValueError(f"{file}: expected keys of {['config', *TRAINING, *INFERENCE]}, got {costs!r}: train or decode again")
    return costs


def peak_memory_gb(cuda: bool) -> float:
    """The most memory this process has held so far, in 10^9 bytes: on the GPU, or in RAM with Python and its libraries."""
    if cuda:
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

"""What a training or a decoding needs: parameters, steps, seconds and memory, in a ``resources.json``."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import torch

from espnet_lole.atomic_io import write_text_atomic

RESOURCES = "resources.json"
TRAINING = ("trained_parameters", "steps", "seconds")
"""Resources of a training; its seconds include validation."""
INFERENCE = ("parameters", "memory_gb")
"""Resources of a decoding: parameters in memory, and the peak of memory."""


def write_resources(folder: Path, config: str | None, **values: float) -> None:
    """Write ``<folder>/resources.json``.

    Args:
        folder: folder of the experiment or of the decoding.
        config: its configuration file.
        values: values of ``TRAINING`` or of ``INFERENCE``.
    """
    write_text_atomic(folder / RESOURCES, json.dumps({"config": config, **values}, indent=1) + "\n")


def read_resources(folder: Path) -> dict[str, float | str | None]:
    """Read ``<folder>/resources.json``; empty without the file, as zero-shot systems have no training.

    Raises:
        ValueError: the file is not one of ``write_resources``.
    """
    file, keys = folder / RESOURCES, ("config", *TRAINING, *INFERENCE)
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}): train or decode again") from None
    if not isinstance(values, dict) or not values.keys() <= set(keys):
        raise ValueError(f"{file}: expected the keys {' '.join(keys)}, got {values!r}: train or decode again")
    return values


def peak_memory_gb(cuda: bool) -> float:
    """Return the peak memory of this process in 10^9 bytes: on the GPU, or in RAM with Python and its libraries."""
    if cuda:
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

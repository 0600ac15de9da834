"""Checkpoints of ESPnet's trainer that survive a kill at any moment."""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from espnet2.train.reporter import Reporter

from espnet_lole.atomic_io import whole_file

CHECKPOINT, PREVIOUS = "checkpoint.pth", "previous.pth"
_PLAIN = [timedelta, np.dtype, *(kind for x in (np.float32(0), np.float64(0)) for kind in (type(x.dtype), x.__reduce__()[0]))]
"""What ESPnet's reporter keeps beside tensors and plain values; none of it runs code."""


@contextmanager
def whole_saves() -> Iterator[None]:
    """Within the context, ``torch.save`` to a path writes the file whole or not at all, and keeps the checkpoint before it."""
    plain = torch.save

    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(f, str | Path):
            plain(obj, f, *args, **kwargs)
            return
        path = Path(f)
        with whole_file(path) as made:
            with made.open("wb") as out:  # torch's own writer would lose the system's error
                plain(obj, out, *args, **kwargs)
            if path.name == CHECKPOINT and path.exists():
                keep(path)

    with patch.object(torch, "save", save):
        yield


def keep(checkpoint: Path) -> None:
    """Give a checkpoint, without a copy, the second name ``previous.pth``."""
    link = checkpoint.with_name(f".{PREVIOUS}")
    link.unlink(missing_ok=True)
    os.link(checkpoint, link)
    os.replace(link, checkpoint.with_name(PREVIOUS))


def intact(path: Path) -> bool:
    """Is a file of ``torch.save`` there, with every byte as it was written?"""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What ``torch.save`` wrote, on the CPU, without running code that the file may hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or holds more than tensors and plain values.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, found none: train first (stage 11)")
    if not intact(Path(path)):
        raise ValueError(f"expected a whole checkpoint, got a broken one in {path}: copy it again, or train it again")
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"expected a checkpoint of tensors and plain values, got other objects in {path}, which were not loaded, as they "
            f"could run code: take it from another source ({str(error).splitlines()[0]})"
        ) from error


def best_of(checkpoint: Path, lang: str) -> Path:
    """An expert's own best: of ``valid.acc.ave.pth``, ``valid.acc_de.ave.pth`` beside it; the same where there is none."""
    phase, _, rest = checkpoint.name.partition(".")
    figure, _, ending = rest.partition(".")
    own = checkpoint.with_name(f"{phase}.{figure}_{lang}.{ending}")
    return own if own.exists() else checkpoint


def recover(folder: Path, criteria: Sequence[Sequence[str]]) -> None:
    """Complete what a killed training left: a broken checkpoint gives way to the one before, and its epoch's files are there.

    Half-written files are removed: they are as large as checkpoints.

    Args:
        folder: of the training.
        criteria: ESPnet's ``best_model_criterion``.

    Raises:
        ValueError: neither checkpoint is intact.
    """
    checkpoint, previous = folder / CHECKPOINT, folder / PREVIOUS
    for partial in folder.glob(".*.pth"):
        partial.unlink()
    if not checkpoint.exists():
        return
    if not intact(checkpoint):
        if not intact(previous):
            raise ValueError(f"expected a whole {checkpoint} or {previous}, got both broken: remove them to train from the start")
        logging.warning(f"{checkpoint} is broken: training goes on from the one before it")
        checkpoint.unlink()
        os.link(previous, checkpoint)
    states = read_checkpoint(checkpoint)
    reporter = Reporter()
    reporter.load_state_dict(states["reporter"])
    epoch = reporter.get_epoch()
    if not intact(folder / f"{epoch}epoch.pth"):
        torch.save(states["model"], folder / f"{epoch}epoch.pth")
    _link(folder / "latest.pth", epoch)
    for phase, key, mode in criteria:
        if reporter.has(phase, key):
            _link(folder / f"{phase}.{key}.best.pth", reporter.get_best_epoch(phase, key, mode))


def _link(link: Path, epoch: int) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(f"{epoch}epoch.pth")

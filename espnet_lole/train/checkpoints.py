"""Checkpoints of ESPnet's trainer: reading them safely, and going on after a kill at any moment."""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.train.reporter import Reporter
from torch import Tensor

from espnet_lole.lole.system import check_fingerprints

CHECKPOINT, PREVIOUS = "checkpoint.pth", "previous.pth"
_PLAIN = [
    timedelta,
    np.dtype,
    *(kind for x in (np.float32(0), np.float64(0)) for kind in (type(x.dtype), x.__reduce__()[0])),
]
"""What ESPnet's reporter stores besides tensors and plain values; none of it runs code."""


def is_intact(path: Path) -> bool:
    """Return whether a file of ``torch.save`` exists with every byte as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what ``torch.save`` wrote, on the CPU, without running code that the file may contain.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or contains more than tensors and plain values.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, found none: train first (stage 11)")
    if not is_intact(Path(path)):
        raise ValueError(f"expected a whole checkpoint, got a broken one in {path}: copy it again, or train it again")
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"expected a checkpoint of tensors and plain values, got other objects in {path}, which were not loaded, "
            f"as they could run code: take it from another source ({str(error).splitlines()[0]})"
        ) from error


def check_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], parts: Collection[str], languages: Sequence[str]
) -> None:
    """Compare what a checkpoint holds with what a model needs: every name and shape, and the frozen parts.

    Args:
        state: of the checkpoint.
        expected: of the model.
        parts: names of the frozen parts, of which both have a fingerprint.
        languages: of the model, for the message.

    Raises:
        ValueError: the checkpoint is of another backbone, of other experts, or of a system of another shape.
    """
    trained_on, present = (  # ESPnet converts all buffers to the precision of the training
        {part: int(torch.as_tensor(values.get(f"{part}_fingerprint", -1)).float()) for part in parts}
        for values in (state, expected)
    )
    check_fingerprints(trained_on, present, "the checkpoint")
    shapes, actual = ({name: value.shape for name, value in values.items()} for values in (expected, state))
    if wrong := sorted(n for n in shapes | actual if shapes.get(n) != actual.get(n)):
        raise ValueError(
            f"expected a checkpoint for the languages {' '.join(languages)} and this configuration, got another in "
            f"{len(wrong)} tensors, e.g. {wrong[0]}: {actual.get(wrong[0])} instead of {shapes.get(wrong[0])}"
        )


def best_checkpoints(folder: Path, criteria: Sequence[Sequence[str]], languages: Sequence[str]) -> dict[str, Path]:
    """Return each language's own best checkpoint, or the shared best one where a language has none.

    Args:
        folder: of a finished training.
        criteria: ESPnet's ``best_model_criterion``; the first counts.
        languages: of the training.
    """
    phase, key, _ = criteria[0]
    shared = folder / f"{phase}.{key}.ave.pth"
    best = {lang: folder / f"{phase}.{key}_{lang}.ave.pth" for lang in languages}
    return {lang: (file if file.exists() else shared).resolve() for lang, file in best.items()}


def keep_previous(folder: Path) -> None:
    """Rename the last epoch's checkpoint to ``previous.pth`` before ESPnet writes the next one in its place."""
    if (folder / CHECKPOINT).exists():
        os.replace(folder / CHECKPOINT, folder / PREVIOUS)


def recover(folder: Path, criteria: Sequence[Sequence[str]]) -> None:
    """Complete what a killed training left.

    A broken checkpoint is replaced by the one before, and the files of its epoch are written.

    Args:
        folder: of the training.
        criteria: ESPnet's ``best_model_criterion``.

    Raises:
        ValueError: neither checkpoint is intact.
    """
    checkpoint, previous = folder / CHECKPOINT, folder / PREVIOUS
    if not checkpoint.exists() and not previous.exists():
        return
    if not is_intact(checkpoint):
        if is_intact(previous):
            logging.warning(f"{checkpoint} is incomplete: training goes on from the epoch before it")
            os.replace(previous, checkpoint)
        elif any(folder.glob("*epoch.pth")):
            raise ValueError(f"{checkpoint} and {previous} are both broken: remove them to train from the start")
        else:  # killed while the first one was written
            logging.warning(f"{checkpoint} is incomplete: training starts again")
            checkpoint.unlink()
            return
    states = read_checkpoint(checkpoint)
    reporter = Reporter()
    reporter.load_state_dict(states["reporter"])
    epoch = reporter.get_epoch()
    if not is_intact(folder / f"{epoch}epoch.pth"):
        torch.save(states["model"], folder / f"{epoch}epoch.pth")
    _link(folder / "latest.pth", epoch)
    for phase, key, mode in criteria:
        if reporter.has(phase, key):
            _link(folder / f"{phase}.{key}.best.pth", reporter.get_best_epoch(phase, key, mode))


def _link(link: Path, epoch: int) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(f"{epoch}epoch.pth")

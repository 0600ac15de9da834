"""ESPnet's SpecAugment on Whisper's features."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from espnet2.asr.specaug.specaug import SpecAug
from torch import Tensor

from espnet_lole.whisper.features import length_mask


class Augment:
    """Warps and masks the frames of speech; padding and silence after them do not change.

    Args:
        conf: of ESPnet's ``SpecAug``.

    Raises:
        ValueError: a key or a value that it does not take.
    """

    def __init__(self, conf: Mapping[str, Any]) -> None:
        known = inspect.signature(SpecAug.__init__).parameters.keys() - {"self"}
        if unknown := sorted(set(conf) - known):
            raise ValueError(f"expected in specaug_conf keys of {sorted(known)}, got {unknown}")
        self._specaug = SpecAug(**conf)

    @torch.no_grad()
    def __call__(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Features (B, M, F), of which ``frames`` (B,) are speech, to others of this shape."""
        size = int(frames.max())
        masked, _ = self._specaug(mel[..., :size].mT.clone(), frames)  # (B, size, M)
        spoken = length_mask(frames, size)[:, None]  # (B, 1, size)
        return torch.cat([torch.where(spoken, masked.mT, mel[..., :size]), mel[..., size:]], dim=-1)

"""ESPnet's SpecAugment on Whisper's features."""

from __future__ import annotations

import torch
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from torch import Tensor

from espnet_lole.whisper.features import length_mask


class Augment:
    """Warps and masks the frames of speech; padding and silence after them do not change.

    Args:
        specaug: ESPnet's, which masks features (B, F, M).
    """

    def __init__(self, specaug: AbsSpecAug) -> None:
        self._specaug = specaug

    @torch.no_grad()
    def __call__(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Features (B, M, F), of which ``frames`` (B,) are speech, to others of this shape."""
        size = int(frames.max())
        masked, _ = self._specaug(mel[..., :size].mT.clone(), frames)  # (B, size, M)
        spoken = length_mask(frames, size)[:, None]  # (B, 1, size)
        return torch.cat([torch.where(spoken, masked.mT, mel[..., :size]), mel[..., size:]], dim=-1)

"""Language identification: pooling over the frames of speech, and an MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from espnet_lole.backbone.whisper import Encoded


class MeanPooling(nn.Module):
    """The mean over frames, (B, T, D) to (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_dim = width

    def forward(self, states: Tensor, weights: Tensor) -> Tensor:
        """Pool states (B, T, D) with weights (B, T, 1) that are 1 for speech and 0 for padding."""
        return _mean(states, weights)


class MeanStdPooling(nn.Module):
    """Mean and standard deviation over frames, (B, T, D) to (B, 2 D): the statistics pooling of x-vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_dim = 2 * width

    def forward(self, states: Tensor, weights: Tensor) -> Tensor:
        """Pool states (B, T, D) with weights (B, T, 1) that are 1 for speech and 0 for padding."""
        mean = _mean(states, weights)
        variance = _mean((states - mean[:, None]) ** 2, weights)
        return torch.cat([mean, (variance + 1e-5).sqrt()], dim=1)


class AttentivePooling(nn.Module):
    """Mean and standard deviation weighted by a learned score of each frame, (B, T, D) to (B, 2 D); Okabe et al., 2018."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_dim = 2 * width
        self.score = nn.Sequential(nn.Linear(width, width // 2), nn.Tanh(), nn.Linear(width // 2, 1))
        self.statistics = MeanStdPooling(width)

    def forward(self, states: Tensor, weights: Tensor) -> Tensor:
        """Pool states (B, T, D) with weights (B, T, 1) that are 1 for speech and 0 for padding."""
        attention = self.score(states).masked_fill(weights == 0, -torch.inf).softmax(dim=1)
        return self.statistics(states, attention)


def _mean(states: Tensor, weights: Tensor) -> Tensor:
    return (states * weights).sum(1) / weights.sum(1)


POOLING = {"mean": MeanPooling, "mean_std": MeanStdPooling, "attentive": AttentivePooling}


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of the language classifier, and how its classes count.

    Attributes:
        pooling: ``mean``, ``mean_std`` or ``attentive``.
        hidden: H, width of the projected frames and of the MLP's hidden layer.
        dropout: on the pooled statistics and behind the hidden layer, in training.
        class_weights: language -> its weight in the cross-entropy, a weighted mean; 1 for those that are left out.
    """

    pooling: str = "mean_std"
    hidden: int = 256
    dropout: float = 0.1
    class_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pooling not in POOLING or self.hidden < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"expected pooling of {sorted(POOLING)}, hidden >= 1 and dropout in [0, 1), got {self}")


class LanguageClassifier(nn.Module):
    """Scores of the trained languages from encoder states: a projection of each frame, pooling, and an MLP.

    Args:
        width: D of the states.
        num_languages: E.
        config: its shape.
    """

    def __init__(self, width: int, num_languages: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.frames = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.hidden), nn.GELU())
        self.pooling = POOLING[config.pooling](config.hidden)
        self.mlp = nn.Sequential(
            nn.LayerNorm(self.pooling.out_dim),
            nn.Dropout(config.dropout),
            nn.Linear(self.pooling.out_dim, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, num_languages),
        )

    def forward(self, encoded: Encoded) -> Tensor:
        """States (B, T, D) to logits (B, E); padded frames do not count."""
        with torch.autocast(encoded.states.device.type, enabled=False):  # half precision is too coarse for the deviation
            states = self.frames(encoded.states.float())  # (B, T, H)
            mask = torch.ones_like(states[..., 0]) if encoded.mask is None else encoded.mask.to(states.dtype)  # (B, T)
            return self.mlp(self.pooling(states, mask[..., None]))

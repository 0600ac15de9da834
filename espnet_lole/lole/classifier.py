"""Language identification: pooling over the frames of speech, and an MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn

from espnet_lole.whisper.model import Encoded

EPSILON = 1e-5
"""Added to variances, in units of the states squared."""
REMEMBERED = 4096
"""Utterances whose statistics are remembered, those of the first batches of an epoch first forgotten."""


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
        return torch.cat([mean, (variance + EPSILON).sqrt()], dim=1)


class MeanStdChangePooling(nn.Module):
    """Mean, standard deviation and root mean square of the change over two frames, (B, T, D) to (B, 3 D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_dim = 3 * width
        self.statistics = MeanStdPooling(width)

    def forward(self, states: Tensor, weights: Tensor) -> Tensor:
        """Pool states (B, T, D) with weights (B, T, 1) that are 1 for speech and 0 for padding."""
        squares = ((states[:, 2:] - states[:, :-2]) ** 2 * weights[:, 2:]).sum(1)
        change = squares / weights[:, 2:].sum(1).clamp(min=1)  # 0 for utterances of less than three frames
        return torch.cat([self.statistics(states, weights), (change + EPSILON).sqrt()], dim=1)


class AttentivePooling(nn.Module):
    """Mean and standard deviation weighted by a learned score of each frame, (B, T, D) to (B, 2 D); Okabe et al., 2018."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_dim = 2 * width
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width // 2), nn.Tanh(), nn.Linear(width // 2, 1))
        self.statistics = MeanStdPooling(width)

    def forward(self, states: Tensor, weights: Tensor) -> Tensor:
        """Pool states (B, T, D) with weights (B, T, 1) that are 1 for speech and 0 for padding."""
        attention = self.score(states).masked_fill(weights == 0, -torch.inf).softmax(dim=1)
        return self.statistics(states, attention)


def _mean(states: Tensor, weights: Tensor) -> Tensor:
    return (states * weights).sum(1) / weights.sum(1)


def _over_ranks(total: Tensor) -> Tensor:
    """The sum over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(total)
    return total


POOLING = {
    "mean": MeanPooling,
    "mean_std": MeanStdPooling,
    "mean_std_change": MeanStdChangePooling,
    "attentive": AttentivePooling,
}


class RunningNorm(nn.Module):
    """Standardises (B, S) by the mean and the variance of all rows seen in training, by all processes: a batch may have one row.

    Args:
        width: S.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """See more rows, of all processes' batches; mean and variance are joined as in Chan et al., 1979."""
        total, rows = _over_ranks(torch.cat([x.sum(0), x.new_tensor([len(x)])])).split([x.shape[1], 1])
        mean = total / rows
        variance = _over_ranks(((x - mean) ** 2).sum(0)) / rows
        share = rows / (self.count + rows)
        shift = mean - self.mean
        self.variance += share * (variance - self.variance + (1 - share) * shift**2)
        self.mean += share * shift
        self.count += rows[0]

    def forward(self, x: Tensor) -> Tensor:
        """Standardise the rows of (B, S)."""
        return (x - self.mean) * (self.variance + EPSILON).rsqrt()


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of the language classifier, and how its classes count.

    Attributes:
        pooling: ``mean``, ``mean_std``, ``mean_std_change`` or ``attentive``.
        hidden: H, width of the MLP's hidden layer.
        dropout: on the pooled statistics and behind the hidden layer, in training.
        replay: utterances of this and earlier batches of the epoch from whose statistics each step learns again; 0: none.
        label_smoothing: share of a target's probability that all languages get alike, in training.
        class_weights: language -> its weight in the cross-entropy, a weighted mean; 1 for those that are left out.
    """

    pooling: str = "mean_std_change"
    hidden: int = 256
    dropout: float = 0.1
    replay: int = 0
    label_smoothing: float = 0.0
    class_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fractions = min(self.dropout, self.label_smoothing) >= 0 and max(self.dropout, self.label_smoothing) < 1
        if self.pooling not in POOLING or self.hidden < 1 or not fractions or not 0 <= self.replay <= REMEMBERED:
            raise ValueError(
                f"expected pooling of {sorted(POOLING)}, hidden >= 1, dropout and label_smoothing in [0, 1) and replay up to "
                f"{REMEMBERED}, got {self}"
            )


class LanguageClassifier(nn.Module):
    """Scores of the trained languages from encoder states: pooling over the frames, standardisation, and an MLP.

    Args:
        width: D of the states.
        num_languages: E.
        config: its shape.
    """

    def __init__(self, width: int, num_languages: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.pooling = POOLING[config.pooling](width)
        self.norm = RunningNorm(self.pooling.out_dim)
        self.mlp = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(self.pooling.out_dim, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, num_languages),
        )

    def pool(self, encoded: Encoded) -> Tensor:
        """States (B, T, D) to statistics (B, S); padded frames do not count."""
        with torch.autocast(encoded.states.device.type, enabled=False):  # half precision is too coarse for the deviation
            states = encoded.states.float()
            mask = torch.ones_like(states[..., 0]) if encoded.mask is None else encoded.mask.to(states.dtype)  # (B, T)
            statistics = self.pooling(states, mask[..., None])
        if self.training:
            self.norm.update(statistics)
        return statistics

    def score(self, statistics: Tensor) -> Tensor:
        """Statistics (B, S) to logits (B, E)."""
        with torch.autocast(statistics.device.type, enabled=False):
            return self.mlp(self.norm(statistics))

    def forward(self, encoded: Encoded) -> Tensor:
        """States (B, T, D) to logits (B, E)."""
        return self.score(self.pool(encoded))


class StatisticsMemory:
    """The pooled statistics of earlier batches' utterances, to learn from again, for the MLP wants more of them than the fusion.

    They are those of slightly older fusion weights; a cross-batch memory as in Wang et al., CVPR 2020.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Become empty."""
        self._seen = 0

    def add(self, statistics: Tensor, language: Tensor) -> None:
        """Remember utterances: (B, S) and the index of their language, (B,)."""
        if not self._seen:
            self._statistics = statistics.new_empty(REMEMBERED, statistics.shape[1])
            self._language = language.new_empty(REMEMBERED)
        places = torch.arange(self._seen, self._seen + len(language), device=language.device) % REMEMBERED
        self._statistics[places], self._language[places] = statistics.detach(), language
        self._seen += len(language)

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Statistics (N, S) and languages (N,), with replacement; the memory must not be empty."""
        rows = torch.randint(min(self._seen, REMEMBERED), (number,), device=self._language.device)
        return self._statistics[rows], self._language[rows]

"""MoLE's language classifier; ``route`` in ``mole.py`` turns its posteriors into the choice of the expert.

The paper's: states are pooled over the frames of speech, and an MLP classifies them. Ours: what is pooled, the
standardization before the MLP, and the options of its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from espnet_lole.lole.replay import MEMORY_SIZE
from espnet_lole.whisper.model import Encoded

EPSILON = 1e-5
"""Added to variances, in units of the states squared."""


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1)


def mean_std(states: Tensor, mask: Tensor) -> Tensor:
    """Pool statistics, as x-vectors do: mean and standard deviation over time.

    Args:
        states: shape (B, T, D).
        mask: 1 for frames of speech, shape (B, T, 1).

    Returns:
        Shape (B, 2 D).
    """
    mean = _mean(states, mask)
    variance = _mean((states - mean[:, None]) ** 2, mask)
    return torch.cat([mean, (variance + EPSILON).sqrt()], dim=1)


def mean_std_change(states: Tensor, mask: Tensor) -> Tensor:
    """Pool as ``mean_std``, and the root mean square of the deltas, differences over two frames: (B, 3 D)."""
    squares = ((states[:, 2:] - states[:, :-2]) ** 2 * mask[:, 2:]).sum(1)
    change = squares / mask[:, 2:].sum(1).clamp(min=1)  # 0 for utterances of fewer than three frames
    return torch.cat([mean_std(states, mask), (change + EPSILON).sqrt()], dim=1)


POOLING: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "mean_std": (mean_std, 2),
    "mean_std_change": (mean_std_change, 3),
}
"""Name -> pooling function, and how many statistics of each state it gives."""


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of the language classifier, and its loss.

    Attributes:
        pooling: ``mean_std`` or ``mean_std_change``.
        hidden: H, width of the MLP's hidden layer.
        dropout: probability of dropout on the pooled statistics and after the hidden layer.
        replay: number of utterances of earlier batches whose statistics each step learns from again; 0: none.
        label_smoothing: smoothing of the cross-entropy in training; reduces overconfidence on training speakers.
        class_weights: language -> its weight in the cross-entropy, a weighted mean; 1 for languages that are left out.
    """

    pooling: str = "mean_std_change"
    hidden: int = 256
    dropout: float = 0.1
    replay: int = 0
    label_smoothing: float = 0.0
    class_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fractions = 0 <= self.dropout < 1 and 0 <= self.label_smoothing < 1
        if self.pooling not in POOLING or self.hidden < 1 or not fractions or not 0 <= self.replay <= MEMORY_SIZE:
            raise ValueError(
                f"expected pooling of {sorted(POOLING)}, hidden >= 1, dropout and label_smoothing in [0, 1) and "
                f"replay up to {MEMORY_SIZE}, got {self}"
            )


class LanguageClassifier(nn.Module):
    """Language logits from encoder states.

    Args:
        width: D of the states.
        languages: the classes.
        config: shape and loss.

    Raises:
        ValueError: a class weight is of an unknown language, or not positive.
    """

    def __init__(self, width: int, languages: Sequence[str], config: ClassifierConfig) -> None:
        super().__init__()
        weights = config.class_weights
        if set(weights) - set(languages) or min(weights.values(), default=1.0) <= 0:
            raise ValueError(f"expected class_weights above 0 for languages of {' '.join(languages)}, got {weights}")
        self.config = config
        self.pooling, num_statistics = POOLING[config.pooling]
        self.norm = RunningNorm(num_statistics * width)
        self.mlp = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(num_statistics * width, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, len(languages)),
        )
        class_weights = torch.tensor([float(weights.get(lang, 1.0)) for lang in languages])
        self.register_buffer("class_weights", class_weights, persistent=False)  # (L,)

    def forward(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Map states (B, T, D) to statistics (B, S), which in training update the norm, and logits (B, L)."""
        statistics = self.pool(encoded)
        if self.training:
            self.norm.update(statistics)
        return statistics, self.classify(statistics)

    def pool(self, encoded: Encoded) -> Tensor:
        """Map states (B, T, D) to statistics (B, S) of the frames of speech."""
        with torch.autocast(encoded.states.device.type, enabled=False):  # bfloat16 is too coarse for the deviation
            states = encoded.states.float()
            mask = torch.ones_like(states[..., 0]) if encoded.mask is None else encoded.mask.to(states.dtype)  # (B, T)
            return self.pooling(states, mask[..., None])

    def classify(self, statistics: Tensor) -> Tensor:
        """Map statistics (B, S) to logits (B, L)."""
        with torch.autocast(statistics.device.type, enabled=False):
            return self.mlp(self.norm(statistics))

    def loss(self, logits: Tensor, language: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the weighted cross-entropy of logits (N, L) and languages (N,).

        Returns:
            The sum of the losses, and the sum of their weights.
        """
        smoothing = self.config.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits, language, self.class_weights, reduction="sum", label_smoothing=smoothing)
        return loss, self.class_weights[language].sum()


class RunningNorm(nn.Module):
    """Standardizes (B, S) by mean and variance of all rows seen in training by all processes.

    Unlike batch normalization it works on a batch of one row.

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
        """Include more rows, of all processes' batches; mean and variance are combined as in Chan et al., 1979."""
        total, rows = _sum_over_ranks(torch.cat([x.sum(0), x.new_tensor([len(x)])])).split([x.shape[1], 1])
        mean = total / rows
        variance = _sum_over_ranks(((x - mean) ** 2).sum(0)) / rows
        share = rows / (self.count + rows)
        shift = mean - self.mean
        self.variance += share * (variance - self.variance + (1 - share) * shift**2)
        self.mean += share * shift
        self.count += rows[0]

    def forward(self, x: Tensor) -> Tensor:
        """Standardize the rows of (B, S)."""
        return (x - self.mean) * (self.variance + EPSILON).rsqrt()


def _sum_over_ranks(total: Tensor) -> Tensor:
    if distributed.is_initialized():
        distributed.all_reduce(total)
    return total

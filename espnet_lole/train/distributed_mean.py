"""Means over the batches of all processes, so that many GPUs train as one would with the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class BatchMeans:
    """Means over one step's batches of all processes.

    Attributes:
        losses: each mean, with the gradient of this process's part, times the number of processes: the mean of the gradients
            over the processes, which DDP takes, is that of the mean over all. 0 where nothing was counted.
        stats: each mean without gradient, the same on all processes. NaN where nothing was counted.
        weight: utterances, the same number on all processes, so that ESPnet's weighting of them changes nothing.
    """

    losses: dict[str, Tensor]
    stats: dict[str, Tensor]
    weight: Tensor


def mean_over_ranks(parts: Mapping[str, tuple[Tensor, Tensor]], utterances: int) -> BatchMeans:
    """Take the means, with one exchange between the processes if there are several.

    Args:
        parts: (sum, count) of each figure in this process's batch, scalars; a sum may have a gradient.
        utterances: in this process's batch.
    """
    sums = torch.stack([total for total, _ in parts.values()])  # (K,)
    counts = torch.stack([count for _, count in parts.values()]).to(sums)
    everything = torch.cat([sums.detach(), counts, sums.new_tensor([utterances])])
    ranks = 1
    if distributed.is_initialized():
        distributed.all_reduce(everything)
        ranks = distributed.get_world_size()
    totals, counted = everything[:-1].chunk(2)
    losses, stats = ranks * sums / counted.where(counted > 0, 1), totals / counted
    each = list(enumerate(parts))  # not unbind: ESPnet's trainer scales the loss in place, which autograd forbids for its views
    return BatchMeans({name: losses[i] for i, name in each}, {name: stats[i] for i, name in each}, everything[-1] / ranks)

"""Means over the batches of all processes, so that many GPUs train as one would with the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class DistributedMeans:
    """Means over one step's batches of all processes.

    Attributes:
        losses: each mean, with the gradient of this process's part, times the number of processes: the mean of the
            gradients over the processes, which DDP takes, is that of the mean over all. 0 where nothing was counted.
        stats: each mean without gradient, the same on all processes. NaN where nothing was counted.
        weight: utterances, the same number on all processes, so that ESPnet's weighting of them changes nothing.
    """

    losses: dict[str, Tensor]
    stats: dict[str, Tensor]
    weight: Tensor


def distributed_means(sums: Mapping[str, tuple[Tensor, Tensor]], utterances: int) -> DistributedMeans:
    """Compute means over all processes, with one exchange between them.

    Args:
        sums: (sum, count) of each figure in this process's batch, scalars; a sum may have a gradient.
        utterances: in this process's batch.
    """
    totals = torch.stack([total for total, _ in sums.values()])  # (K,)
    counts = torch.stack([count for _, count in sums.values()]).to(totals)
    everything = torch.cat([totals.detach(), counts, totals.new_tensor([utterances])])
    ranks = 1
    if distributed.is_initialized():
        distributed.all_reduce(everything)
        ranks = distributed.get_world_size()
    all_totals, all_counts = everything[:-1].chunk(2)
    losses, stats = ranks * totals / all_counts.where(all_counts > 0, 1), all_totals / all_counts
    each = list(
        enumerate(sums)
    )  # not unbind: ESPnet's trainer scales the loss in place, which autograd forbids for its views
    return DistributedMeans(
        {name: losses[i] for i, name in each}, {name: stats[i] for i, name in each}, everything[-1] / ranks
    )

"""A frozen linear with the LoRA experts of all languages on it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Way(Protocol):
    """How the utterances of a batch go through the experts."""

    def add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Add the experts' update to the frozen linear's output, in place.

        Args:
            y: shape (B, T, out_dim).
            x: its input, shape (B, T, in_dim).
            a: of all experts, shape (E, R, in_dim).
            b: of all experts, shape (E, out_dim, R).
            scale: of the update.
        """


class Chosen(Way):
    """Each utterance through one expert, or a mixture of several, whose factors are gathered for it.

    Args:
        index: the expert of each utterance, shape (B,); or the K experts, (B, K), as one of rank K R.
        weights: of a mixture's experts, shape (B, K).
    """

    def __init__(self, index: Tensor, weights: Tensor | None = None) -> None:
        self.index, self.weights = index, weights

    def add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """See ``Way``."""
        if len(a) == 1 and self.weights is None:
            return y.add_(F.linear(F.linear(x, a[0]), b[0]), alpha=scale)
        a, b = (factor.index_select(0, self.index.flatten()) for factor in (a, b))
        if self.weights is not None:
            a = a.unflatten(0, self.index.shape).flatten(1, 2)  # (B, K R, in_dim)
            b = b.unflatten(0, self.index.shape) * self.weights[..., None, None]  # (B, K, out_dim, R)
            b = b.transpose(1, 2).flatten(2)  # (B, out_dim, K R)
        return y.baddbmm_(torch.bmm(x, a.mT).to(y.dtype), b.mT.to(y.dtype), alpha=scale)  # autocast does not cast in place


class Grouped(Way):
    """Each utterance through one expert, with those of an expert in one product, which copies utterances instead of factors.

    It is faster than ``Chosen`` for few frames, such as the steps of a search; the results are the same.

    Args:
        index: the expert of each utterance, shape (B,).
    """

    def __init__(self, index: Tensor) -> None:
        self.experts, group, sizes = index.unique(return_inverse=True, return_counts=True)  # (G,), (B,), (G,)
        numbers, order, largest = torch.arange(len(index), device=index.device), group.argsort(stable=True), sizes.max()
        within = numbers - (sizes.cumsum(0) - sizes)[group[order]]  # (B,): place of the utterances of ``order`` in their groups
        self.places = torch.empty_like(order).index_copy_(0, order, group[order] * largest + within)  # (B,)
        rows = order.new_zeros(len(sizes) * int(largest))  # (G N,); the smaller groups are filled up with the first utterance
        self.rows = rows.index_copy_(0, self.places, numbers)

    def add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """See ``Way``."""
        if len(self.experts) < len(a):
            a, b = a[self.experts], b[self.experts]
        together = x[self.rows].unflatten(0, (len(a), -1)).flatten(1, 2)  # (G, N T, in_dim)
        update = torch.bmm(torch.bmm(together, a.mT), b.mT)  # (G, N T, out_dim)
        return y.add_(update.unflatten(1, (-1, x.shape[1])).flatten(0, 1)[self.places], alpha=scale)


class Route:
    """Where a bank leads: a way that all its layers follow. Without one, the backbone alone."""

    def __init__(self) -> None:
        self.way: Way | None = None

    @contextmanager
    def led(self, way: Way | None) -> Iterator[None]:
        """Within the context, the way is another."""
        before, self.way = self.way, way
        try:
            yield
        finally:
            self.way = before


class ExpertLinear(nn.Module):
    """``h = W0 x + b + (alpha / R) B_e A_e x`` with the expert ``e`` of each utterance.

    The factors of all experts are stacked, and a mixed batch takes two batched products. A bank of one adapter multiplies with
    it as it is. On linears that have experts already, ``W0 x + b`` is what those give.

    Args:
        base: the frozen linear, ``in_dim`` to ``out_dim``, with or without experts.
        route: shared by all layers of a bank, set before each forward pass.
        num_experts: E.
        rank: R.
        scale: ``alpha / R``.
        dropout: probability of dropping an input of the experts in training.
    """

    def __init__(
        self, base: nn.Linear | ExpertLinear, route: Route, num_experts: int, rank: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.route = route
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.in_features, self.out_features = base.in_features, base.out_features
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(num_experts, rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(num_experts, base.out_features, rank, device=device))

    @property
    def weight(self) -> Tensor:
        """``W0``, shape (out_dim, in_dim)."""
        return self.base.weight

    def reset(self, name: str, languages: Sequence[str], seed: int) -> None:
        """Draw A (Kaiming uniform) and zero B; an expert's start depends on its language, not on its neighbours."""
        if self.lora_A.is_meta:
            return
        bound = 1 / math.sqrt(self.lora_A.shape[2])
        with torch.no_grad():
            for row, lang in enumerate(languages):
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {lang} {name}".encode()))
                start = torch.rand(self.lora_A.shape[1:], generator=generator) * (2 * bound) - bound
                self.lora_A[row] = start.to(self.lora_A)
            self.lora_B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, in_dim) to (B, T, out_dim)."""
        y, way = self.base(x), self.route.way
        if way is None:
            return y
        return way.add(y, self.dropout(x), self.lora_A, self.lora_B, self.scale)


def hold_routes(model: nn.Module) -> AbstractContextManager[None]:
    """A context, for later, in which every bank in the model leads where it leads now."""
    routes = {id(module.route): module.route for module in model.modules() if isinstance(module, ExpertLinear)}
    return _led([(route, route.way) for route in routes.values()])


@contextmanager
def _led(ways: Sequence[tuple[Route, Way | None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for route, way in ways:
            stack.enter_context(route.led(way))
        yield

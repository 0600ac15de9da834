"""A frozen linear with the LoRA experts of all languages on it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from espnet_lole.lole.fast import (
    Batched,
    CastFactors,
    Ends,
    ExpertProduct,
    Parts,
    Spans,
    can_be_grouped,
    grouped_product,
    product,
    product_dtype,
)

CAST_TOGETHER = 16
"""Linears whose factors are cast in one call. Their gradients come together too: with few, processes exchange them meanwhile."""


class Way(Protocol):
    """How the utterances of a batch go through the experts."""

    def product(self, linear: nn.Linear, x: Tensor, kept: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """A frozen linear's output with the experts' update, shape (B, T, out_dim).

        Args:
            linear: in_dim to out_dim.
            x: its input, shape (B, T, in_dim).
            kept: that of the experts, if dropout made another of it.
            a: of all experts, shape (E, R, in_dim).
            b: of all experts, shape (E, out_dim, R).
            scale: of the update.
        """


class Chosen(Way):
    """Each utterance through one expert, or a mixture of several.

    Args:
        index: the expert of each utterance, shape (B,); or the K experts, (B, K), as one of rank K R.
        weights: of a mixture's experts, shape (B, K).
    """

    def __init__(self, index: Tensor, weights: Tensor | None = None) -> None:
        self.index, self.weights = index, weights
        numbered = weights is None and not isinstance(index, FakeTensor)  # a plan's has no numbers
        on_cpu = index.device.type == "cpu"
        self._parts: Parts = Spans(index.tolist()) if numbered and on_cpu else Batched(index)
        self.calls_are_dear = numbered and not on_cpu
        self.ascending = self.calls_are_dear and not bool((index.diff() < 0).any())
        self._ends: Ends | None = None
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    def in_few_calls(self, dtype: torch.dtype, a: Tensor, b: Tensor) -> bool:
        """Are these factors multiplied by ``grouped_product``?"""
        return self.calls_are_dear and (len(a) == 1 or (self.ascending and can_be_grouped(dtype, a, b)))

    def cast(self, pairs: Sequence[tuple[Tensor, Tensor]], scale: float, precision: torch.dtype) -> None:
        """Cast the factors A and B of all linears to the precision of the products, with B scaled, for calls of ``product``."""
        for start in range(0, len(pairs), CAST_TOGETHER):
            some = pairs[start : start + CAST_TOGETHER]
            casts = CastFactors.apply(precision, scale, *(factor for pair in some for factor in pair))
            self._casts |= {id(a): cast for (a, _), cast in zip(some, zip(casts[0::2], casts[1::2], strict=True), strict=True)}

    def product(self, linear: nn.Linear, x: Tensor, kept: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """See ``Way``."""
        dtype = product_dtype(linear.weight)
        rows, kept = x.to(dtype).flatten(0, 1), None if kept is None else kept.to(dtype).flatten(0, 1)
        taken = rows if kept is None else kept
        if self.in_few_calls(dtype, a, b):
            ends = None
            if len(a) > 1:
                self._ends = self._ends or Ends(self.index, len(a))
                ends = self._ends.of(len(rows))
            if id(a) in self._casts:
                (a, b), scale = self._casts[id(a)], 1.0
            y = grouped_product(rows, taken, linear.weight, linear.bias, a.to(dtype), b.to(dtype), ends, scale)
            return y.view(*x.shape[:2], -1)
        if self.weights is not None:
            a = a[self.index].flatten(1, 2)  # (B, K R, in_dim)
            b = b[self.index] * self.weights[..., None, None]  # (B, K, out_dim, R)
            b = b.transpose(1, 2).flatten(2)  # (B, out_dim, K R)
        alone = self.weights is not None or (len(a) == 1 and not isinstance(self._parts, Spans))
        parts = Batched(None) if alone else self._parts
        if torch.is_grad_enabled():
            y = ExpertProduct.apply(rows, kept, linear.weight, linear.bias, a, b, parts, scale)
        elif kept is None and isinstance(parts, Spans) and parts.merging_pays(rows, linear.weight):
            y = parts.multiply_merged(rows, linear.weight, linear.bias, a, b, scale)
        else:
            y, _ = product(rows, taken, linear.weight, linear.bias, a, b, parts, scale)
        return y.view(*x.shape[:2], -1)


class Grouped(Way):
    """Each utterance through one expert, with those of an expert in one product, which copies utterances instead of factors.

    That is less to copy where an utterance has fewer frames than an expert has rank, such as in the steps of a search, and
    nothing where the utterances lie in equal groups already, as those of one language do. Where there are more frames, such
    as of the speech that the first step attends to, this is ``Chosen``; the results are the same.

    Args:
        index: the expert of each utterance, shape (B,).
    """

    def __init__(self, index: Tensor) -> None:
        self._of_many_frames = Chosen(index)
        self.experts, group, sizes = index.unique(return_inverse=True, return_counts=True)  # (G,), (B,), (G,)
        numbers, order, largest = torch.arange(len(index), device=index.device), group.argsort(stable=True), sizes.max()
        within = numbers - (sizes.cumsum(0) - sizes)[group[order]]  # (B,): place of the utterances of ``order`` in their groups
        self.places = torch.empty_like(order).index_copy_(0, order, group[order] * largest + within)  # (B,)
        rows = order.new_zeros(len(sizes) * int(largest))  # (G N,); the smaller groups are filled up with the first utterance
        self.rows = rows.index_copy_(0, self.places, numbers)
        self.in_groups = torch.equal(self.rows, numbers)
        self._taken: dict[int, tuple[Tensor, ...]] = {}  # out of a larger bank, or one of higher precision, once for all steps

    def product(self, linear: nn.Linear, x: Tensor, kept: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """See ``Way``."""
        if len(a) == 1 or x.shape[1] >= a.shape[1]:
            return self._of_many_frames.product(linear, x, kept, a, b, scale)
        y = linear(x)
        if len(self.experts) < len(a) or a.dtype != y.dtype:
            if id(a) not in self._taken:
                self._taken[id(a)] = tuple(factor.index_select(0, self.experts).to(y.dtype) for factor in (a, b))
            a, b = self._taken[id(a)]
        x = (x if kept is None else kept).to(y.dtype)
        if self.in_groups:
            low = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.mT)  # (G, N T, R)
            y.view(len(a), -1, y.shape[-1]).baddbmm_(low, b.mT, alpha=scale)
            return y
        together = x.index_select(0, self.rows).view(len(a), -1, x.shape[-1])  # (G, N T, in_dim)
        update = torch.bmm(torch.bmm(together, a.mT), b.mT)  # (G, N T, out_dim)
        return y.add_(update.view(-1, *y.shape[1:]).index_select(0, self.places), alpha=scale)


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

    The factors of all experts are stacked. A bank of one adapter multiplies all utterances with it as one. On a linear that has
    the experts of another bank, that bank must lead nowhere at the time.

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

    @property
    def frozen(self) -> nn.Linear:
        """``W0`` and its bias, under the experts of all banks.

        Raises:
            RuntimeError: another bank leads too.
        """
        if isinstance(self.base, nn.Linear):
            return self.base
        if self.base.route.way is not None:
            raise RuntimeError("expected one bank of experts to lead at a time, got two on the same linear")
        return self.base.frozen

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
        way = self.route.way
        if way is None:
            return self.base(x)
        kept = self.dropout(x) if self.training and self.dropout.p else None
        return way.product(self.frozen, x, kept, self.lora_A, self.lora_B, self.scale)


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

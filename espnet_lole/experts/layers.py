"""A frozen linear with the LoRA experts of all languages on it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


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


class _Update(torch.autograd.Function):
    """``y += scale B_e A_e x``, in place, with one expert ``e`` for each of G equal parts of the utterances.

    Autograd by itself would keep what each product takes until the backward pass, the factors gathered for each utterance among
    it, which together can be larger than the bank. Here they are gathered again.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, x: Tensor, a: Tensor, b: Tensor, index: Tensor, scale: float) -> Tensor:
        """Of y (B, T, out_dim) and x (B, T, in_dim) in one precision, a (E, R, in_dim), b (E, out_dim, R) and index (G,)."""
        low = torch.bmm(_parts(x, index), _gather(a, index, x.dtype).mT)  # (G, B T / G, R)
        y.view(*low.shape[:2], -1).baddbmm_(low, _gather(b, index, x.dtype).mT, alpha=scale)
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, low if ctx.needs_input_grad[3] else None, a, b, index)
        ctx.scale = scale
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_y: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of y, x, a and b."""
        x, low, a, b, index = ctx.saved_tensors
        of_y = of_y.contiguous()
        of_x, of_a, of_b, rows = None, None, None, _parts(of_y, index)  # (G, B T / G, out_dim)
        of_low = torch.bmm(rows, _gather(b, index, of_y.dtype)).mul_(ctx.scale)  # (G, B T / G, R)
        if ctx.needs_input_grad[1]:
            of_x = torch.bmm(of_low, _gather(a, index, of_y.dtype)).view(*of_y.shape[:2], -1)
        if ctx.needs_input_grad[2]:
            of_a = torch.zeros_like(a).index_add_(0, index, torch.bmm(of_low.mT, _parts(x, index)).to(a.dtype))
        if ctx.needs_input_grad[3]:
            of_b = torch.zeros_like(b).index_add_(0, index, torch.bmm(rows.mT, low).to(b.dtype), alpha=ctx.scale)
        return of_y, of_x, of_a, of_b, None, None


def _parts(x: Tensor, index: Tensor) -> Tensor:
    """Utterances (B, T, D) as G parts, shape (G, B T / G, D), for an index (G,)."""
    return x.reshape(len(index), -1, x.shape[-1])


def _gather(factor: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """The factors (E, ...) of the experts in the index (G,) in a precision, shape (G, ...); a single one as it is."""
    if len(factor) == 1:
        return factor.to(dtype)
    if len(index) < len(factor):
        return factor.index_select(0, index).to(dtype)
    return factor.to(dtype).index_select(0, index)


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
        index = self.index[:1] if len(a) == 1 else self.index  # one adapter multiplies all utterances as one
        if self.weights is not None:
            a = a[self.index].flatten(1, 2)  # (B, K R, in_dim)
            b = b[self.index] * self.weights[..., None, None]  # (B, K, out_dim, R)
            b = b.transpose(1, 2).flatten(2)  # (B, out_dim, K R)
            index = torch.arange(len(a), device=a.device)
        return _Update.apply(y, x.to(y.dtype), a, b, index, scale)


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
        self._taken: dict[int, tuple[Tensor, Tensor]] = {}  # out of a larger bank, once for all steps

    def add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """See ``Way``."""
        if len(a) == 1 or x.shape[1] >= a.shape[1]:
            return self._of_many_frames.add(y, x, a, b, scale)
        if len(self.experts) < len(a):
            if id(a) not in self._taken:
                self._taken[id(a)] = a.index_select(0, self.experts), b.index_select(0, self.experts)
            a, b = self._taken[id(a)]
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

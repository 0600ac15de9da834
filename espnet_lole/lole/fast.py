"""The product of a frozen linear with its experts, over rows of which each has its expert."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

MERGE_COST = 1.5
"""Of a product in a merge, which reads and writes weights, beside one of rows. An encoder was faster with it than with 1."""


def product_dtype(weight: Tensor) -> torch.dtype:
    """The precision of products with a matrix: its own, or that of autocast."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class Parts(Protocol):
    """Which rows, the frames of all utterances one after the other, are whose."""

    def multiply(self, rows: Tensor, factors: Tensor, onto: Tensor | None = None, alpha: float = 1.0) -> Tensor:
        """Rows (M, K) by the factors (E, K, N) of their experts, shape (M, N): times alpha and added to a tensor, or alone."""

    def sum_outer(self, left: Tensor, right: Tensor, like: Tensor, alpha: float) -> Tensor:
        """Left (M, K) by right (M, N), summed over each expert's rows, times alpha; in shape (E, K, N) and dtype of a factor."""


class Batched(Parts):
    """G equal parts in one batched product, for which the factors are gathered.

    Args:
        index: the expert of each part, shape (G,); None: part g has expert g.
    """

    def __init__(self, index: Tensor | None) -> None:
        self.index = index

    def _split(self, rows: Tensor, factors: Tensor) -> Tensor:
        return rows.view(len(factors if self.index is None else self.index), -1, rows.shape[1])

    def multiply(self, rows: Tensor, factors: Tensor, onto: Tensor | None = None, alpha: float = 1.0) -> Tensor:
        """See ``Parts``."""
        split = self._split(rows, factors)  # (G, M / G, K)
        if self.index is None:
            factors = factors.to(rows.dtype)
        elif len(self.index) < len(factors):
            factors = factors.index_select(0, self.index).to(rows.dtype)
        else:
            factors = factors.to(rows.dtype).index_select(0, self.index)
        if onto is None:
            return torch.bmm(split, factors).flatten(0, 1)
        onto.view(*split.shape[:2], -1).baddbmm_(split, factors, alpha=alpha)
        return onto

    def sum_outer(self, left: Tensor, right: Tensor, like: Tensor, alpha: float) -> Tensor:
        """See ``Parts``."""
        outer = torch.bmm(self._split(left, like).mT, self._split(right, like))
        if self.index is None:
            return torch.mul(outer, alpha, out=torch.empty_like(like))
        return torch.zeros_like(like).index_add_(0, self.index, outer.to(like.dtype), alpha=alpha)


class Spans(Parts):
    """A product for each run of utterances of one expert, in place: on a CPU, where a call costs little and a copy much.

    Args:
        experts: of each utterance.
    """

    def __init__(self, experts: Sequence[int]) -> None:
        self.utterances = len(experts)
        runs = [(expert, len(list(run))) for expert, run in groupby(experts)]
        self.experts = [expert for expert, _ in runs]
        self.sizes = [size for _, size in runs]
        """Utterances of each run."""

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        frames = len(rows) // self.utterances
        return rows.split([size * frames for size in self.sizes])

    def multiply(self, rows: Tensor, factors: Tensor, onto: Tensor | None = None, alpha: float = 1.0) -> Tensor:
        """See ``Parts``."""
        beta = 1.0 if onto is not None else 0.0
        onto = rows.new_empty(len(rows), factors.shape[2]) if onto is None else onto
        for expert, part, out in zip(self.experts, self._split(rows), self._split(onto), strict=True):
            out.addmm_(part, factors.select(0, expert).to(rows.dtype), beta=beta, alpha=alpha)
        return onto

    def sum_outer(self, left: Tensor, right: Tensor, like: Tensor, alpha: float) -> Tensor:
        """See ``Parts``."""
        sums, met = torch.empty_like(like), set()
        for expert, of_left, of_right in zip(self.experts, self._split(left), self._split(right), strict=True):
            total = sums.select(0, expert)
            if like.dtype == left.dtype:
                total.addmm_(of_left.T, of_right, beta=float(expert in met), alpha=alpha)
            elif expert in met:
                total.add_(of_left.T @ of_right, alpha=alpha)
            else:
                torch.mul(of_left.T @ of_right, alpha, out=total)
            met.add(expert)
        for expert in set(range(len(sums))) - met:
            sums[expert].zero_()
        return sums

    def merging_pays(self, x: Tensor, weight: Tensor) -> bool:
        """Is it less work to merge the experts of these rows, (M, in_dim), than to take the rows through their factors?

        Of each rank, a merge takes ``in_dim out_dim`` products and a row ``in_dim + out_dim``. Only in float32: a lower
        precision would round what is merged, so that a text could depend on the batch.
        """
        merges, factors = len(self.sizes) * weight.numel(), len(x) * sum(weight.shape)
        return x.dtype == torch.float32 and MERGE_COST * merges < factors

    def multiply_merged(self, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """As ``product``, without gradients: the weights of each run are merged in turn, in one place for all."""
        y, merged = x.new_empty(len(x), len(weight)), torch.empty_like(weight)
        for expert, rows, out in zip(self.experts, self._split(x), self._split(y), strict=True):
            torch.addmm(weight, b[expert].to(x.dtype), a[expert].to(x.dtype), alpha=scale, out=merged)
            torch.mm(rows, merged.T, out=out) if bias is None else torch.addmm(bias, rows, merged.T, out=out)
        return y


def product(
    x: Tensor, taken: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, parts: Parts, scale: float
) -> tuple[Tensor, Tensor]:
    """The output of a frozen linear with its experts, shape (M, out_dim), and the low-rank states, shape (M, R).

    Args:
        x: input of the linear, shape (M, in_dim).
        taken: input of the experts, the same or with some of it dropped.
        weight: shape (out_dim, in_dim).
        bias: shape (out_dim,), or None.
        a: of all experts, shape (E, R, in_dim).
        b: of all experts, shape (E, out_dim, R).
        parts: whose the rows are.
        scale: of the update.
    """
    low = parts.multiply(taken, a.mT)
    y = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return parts.multiply(low, b.mT, onto=y, alpha=scale), low


class ExpertProduct(torch.autograd.Function):
    """``y = W0 x + b0 + scale B_e A_e x`` with the expert ``e`` of each row.

    As one function it adds the update, and the update's gradient of x, to those of the frozen linear in place. Autograd by
    itself would copy them, and keep until the backward pass what each product takes, the factors gathered for each utterance
    among it, which together can be larger than the bank.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        kept: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        parts: Parts,
        scale: float,
    ) -> Tensor:
        """Of x (M, in_dim), and of it with some of it dropped for the experts, a (E, R, in_dim) and b (E, out_dim, R)."""
        taken = x if kept is None else kept
        y, low = product(x, taken, weight, bias, a, b, parts, scale)
        of_a, of_b = ctx.needs_input_grad[4:6]
        ctx.save_for_backward(taken if of_a else None, low if of_b else None, weight, a, b)
        ctx.parts, ctx.scale, ctx.dropped = parts, scale, kept is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_y: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, kept, a and b."""
        taken, low, weight, a, b = ctx.saved_tensors
        of_x, of_kept, of_a, of_b, of_y = None, None, None, None, of_y.contiguous()
        of_low = ctx.parts.multiply(of_y, b)  # (M, R), all but the scale
        if ctx.needs_input_grad[0]:
            of_x = of_y @ weight.to(of_y.dtype)
            if not ctx.dropped:
                ctx.parts.multiply(of_low, a, onto=of_x, alpha=ctx.scale)
        if ctx.needs_input_grad[1]:
            of_kept = ctx.parts.multiply(of_low, a).mul_(ctx.scale)
        if ctx.needs_input_grad[4]:
            of_a = ctx.parts.sum_outer(of_low, taken, a, ctx.scale)
        if ctx.needs_input_grad[5]:
            of_b = ctx.parts.sum_outer(of_y, low, b, ctx.scale)
        return of_x, of_kept, None, None, of_a, of_b, None, None


class Ends:
    """Where the rows of each expert end, if they lie expert by expert.

    Args:
        index: the expert of each utterance, ascending, shape (B,).
        num_experts: E.
    """

    def __init__(self, index: Tensor, num_experts: int) -> None:
        self._utterances = len(index)
        numbers = torch.arange(num_experts, device=index.device)[:, None]
        self._ends = (index <= numbers).sum(1, dtype=torch.int32)  # (E,): utterances up to an expert's last
        self._of_rows: dict[int, Tensor] = {}

    def of(self, rows: int) -> Tensor:
        """Of so many rows, the frames of all utterances one after the other, shape (E,)."""
        if rows not in self._of_rows:
            self._of_rows[rows] = self._ends * (rows // self._utterances)
        return self._of_rows[rows]


def can_be_grouped(dtype: torch.dtype, a: Tensor, b: Tensor) -> bool:
    """Are there grouped products of these factors? A GPU wants bfloat16, rows of 16 bytes and PyTorch 2.10."""
    return dtype == torch.bfloat16 and not (a.shape[1] | a.shape[2] | b.shape[1]) % 8 and hasattr(F, "grouped_mm")


def grouped_product(
    x: Tensor, taken: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, ends: Tensor | None, scale: float
) -> Tensor:
    """As ``product``, in few calls that autograd knows, for a GPU: it waits for each call, and longer for those from Python.

    Args:
        x: input of the linear, shape (M, in_dim).
        taken: input of the experts, the same or with some of it dropped.
        weight: shape (out_dim, in_dim).
        bias: shape (out_dim,), or None.
        a: of all experts, shape (E, R, in_dim), in the dtype of x.
        b: of all experts, shape (E, out_dim, R).
        ends: where the rows of each expert end, shape (E,); None: there is one expert.
        scale: of the update.
    """
    y = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    if ends is None:
        return y.addmm_(taken @ a.flatten(0, 1).T, b.flatten(0, 1).T, alpha=scale)
    low = F.grouped_mm(taken, a.mT, offs=ends)
    return y.add_(F.grouped_mm(low, b.mT, offs=ends), alpha=scale)


class CastFactors(torch.autograd.Function):
    """Factors A, B, A, B, ... in the precision of the products, B scaled: few calls for many linears, and for their gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, precision: torch.dtype, scale: float, *factors: Tensor) -> tuple[Tensor, ...]:
        """The casts, of the shapes of the factors."""
        ctx.scale, ctx.dtype = scale, factors[0].dtype
        ctx.set_materialize_grads(False)
        casts = tuple(torch.empty_like(factor, dtype=precision) for factor in factors)
        torch._foreach_copy_(casts[0::2], factors[0::2])
        torch._foreach_copy_(casts[1::2], torch._foreach_mul(factors[1::2], scale))
        return casts

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *of_casts: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the factors, in their precision; None for those that were not used."""
        grads = [None if of_cast is None else torch.empty_like(of_cast, dtype=ctx.dtype) for of_cast in of_casts]
        for scale, part in ((1.0, slice(0, None, 2)), (ctx.scale, slice(1, None, 2))):
            used = [(to, of) for to, of in zip(grads[part], of_casts[part], strict=True) if of is not None]
            if used:
                to, of = (list(each) for each in zip(*used, strict=True))
                torch._foreach_copy_(to, of)
                if scale != 1.0:
                    torch._foreach_mul_(to, scale)
        return None, None, *grads

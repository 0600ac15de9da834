"""Faster forms of ``experts.expert_linear``, with its signature; ``choose`` is the one place where one is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from espnet_lole.lole.experts import Selection


def choose(x: Tensor, weight: Tensor, rank: int, selection: Selection) -> Callable[..., Tensor] | None:
    """Return the fastest form for an input (B, T, D_in) of a linear with this weight, or None for the plain one."""
    if x.shape[1] < rank and len(selection.runs) > 1 and not torch.is_grad_enabled():
        return batched_expert_linear
    if not x.is_cuda:
        return inplace_expert_linear
    if len(selection.runs) > 1 and selection.sorted and _can_be_grouped(weight, rank):
        return grouped_expert_linear
    return None


def _can_be_grouped(weight: Tensor, rank: int) -> bool:
    """Return whether a GPU has grouped products of these factors: in bfloat16, of rows of whole 16 bytes."""
    whole = all(size % 8 == 0 for size in (*weight.shape, rank))
    return whole and _product_dtype(weight) == torch.bfloat16 and hasattr(F, "grouped_mm")


def _product_dtype(weight: Tensor) -> torch.dtype:
    """Return the precision of products with a matrix: its own, or that of autocast."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def inplace_expert_linear(
    x: Tensor,
    x_lora: Tensor,
    base: nn.Linear,
    a: nn.ParameterDict,
    b: nn.ParameterDict,
    selection: Selection,
    scale: float,
) -> Tensor:
    """Add the update, and its gradient of x, in place to those of the frozen linear: on a CPU, copies cost as much."""
    dtype, dropped = _product_dtype(base.weight), x_lora is not x
    factors = [factor for lang, _ in selection.runs for factor in (a[lang], b[lang])]
    counts = [count for _, count in selection.runs]
    x = x.to(dtype)
    return _InplaceExpertLinear.apply(x, x_lora.to(dtype) if dropped else x, base, counts, scale, *factors)


class _InplaceExpertLinear(torch.autograd.Function):
    """``y = W0 x + bias + s B A x`` with a pair of factors (R, D_in), (D_out, R) for each run of utterances."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, x_lora: Tensor, base: nn.Linear, counts: list[int], scale: float, *factors: Tensor
    ) -> Tensor:
        """Compute y (B, T, D_out) from x and x_lora (B, T, D_in)."""
        y = F.linear(x, base.weight.to(x.dtype), None if base.bias is None else base.bias.to(x.dtype))
        low = []
        for i, (x_run, y_run) in enumerate(zip(x_lora.split(counts), y.split(counts), strict=True)):
            a, b = (factor.to(x.dtype) for factor in factors[2 * i : 2 * i + 2])
            low.append(x_run.flatten(0, 1) @ a.T)  # (rows, R)
            y_run.view(-1, y.shape[-1]).addmm_(low[-1], b.T, alpha=scale)
        ctx.base, ctx.counts, ctx.scale, ctx.dropped = base, counts, scale, x_lora is not x
        train = any(ctx.needs_input_grad[5:])
        ctx.save_for_backward(*factors, *([x_lora, *low] if train else []))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x, x_lora and the factors."""
        dy, scale, runs = dy.contiguous(), ctx.scale, len(ctx.counts)
        saved = ctx.saved_tensors  # read once: activation checkpointing computes them again
        factors, train = saved[: 2 * runs], saved[2 * runs :]
        dx = dy @ ctx.base.weight.to(dy.dtype) if ctx.needs_input_grad[0] else None
        dx_lora = dy.new_zeros(*dy.shape[:2], factors[0].shape[1]) if ctx.dropped else dx
        x_runs = train[0].split(ctx.counts) if train else ()
        gradients: list[Tensor] = []
        for i, dy_run in enumerate(dy.split(ctx.counts)):
            dy_run = dy_run.flatten(0, 1)
            a, b = (factor.to(dy.dtype) for factor in factors[2 * i : 2 * i + 2])
            dlow = (dy_run @ b).mul_(scale)  # (rows, R)
            if dx_lora is not None:
                dx_lora.split(ctx.counts)[i].view(-1, a.shape[1]).addmm_(dlow, a)
            if train:
                gradients += [dlow.T @ x_runs[i].flatten(0, 1), (dy_run.T @ train[1 + i]).mul_(scale)]
        dfactors = [g.to(f.dtype) for g, f in zip(gradients, factors, strict=True)] if train else [None] * (2 * runs)
        return dx, dx_lora if ctx.dropped else None, None, None, None, *dfactors


def grouped_expert_linear(
    x: Tensor,
    x_lora: Tensor,
    base: nn.Linear,
    a: nn.ParameterDict,
    b: nn.ParameterDict,
    selection: Selection,
    scale: float,
) -> Tensor:
    """Multiply the utterances of all experts in two grouped products: launch overhead dominates on a GPU.

    Each expert's utterances lie together.
    """
    y = base(x)
    ends = selection.ends(x.shape[1], x.device)
    stack_a, stack_b = (torch.stack([factor[lang] for lang, _ in selection.runs]).to(y.dtype) for factor in (a, b))
    low = F.grouped_mm(x_lora.to(y.dtype).flatten(0, 1), stack_a.mT, offs=ends)  # (B T, R)
    return y.add_(F.grouped_mm(scale * low, stack_b.mT, offs=ends).view_as(y))


class Groups:
    """The utterances of a batch in groups of one expert each, filled up to one size with copies of the first utterance.

    Args:
        langs: language of each utterance.
    """

    def __init__(self, langs: Sequence[str]) -> None:
        members: dict[str, list[int]] = {}
        for row, lang in enumerate(langs):
            members.setdefault(lang, []).append(row)
        self.languages = list(members)
        size = max(map(len, members.values()))
        order = [row for rows in members.values() for row in rows + [0] * (size - len(rows))]
        places = {row: g * size + i for g, rows in enumerate(members.values()) for i, row in enumerate(rows)}
        self.in_order = order == list(range(len(langs)))
        self.order = torch.tensor(order)  # (G N,): the utterance of each place, G groups of N
        self.places = torch.tensor([places[row] for row in range(len(langs))])  # (B,)
        self._stacked: dict[int, tuple[Tensor, Tensor]] = {}

    def stack(self, a: nn.ParameterDict, b: nn.ParameterDict, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Stack a layer's factors once for all steps: A^T (G, D_in, R) and B^T (G, R, D_out)."""
        if id(a) not in self._stacked:
            device = next(iter(a.values())).device
            self.order, self.places = self.order.to(device), self.places.to(device)
            self._stacked[id(a)] = tuple(torch.stack([f[lang].to(dtype) for lang in self.languages]).mT for f in (a, b))
        return self._stacked[id(a)]


def batched_expert_linear(
    x: Tensor,
    x_lora: Tensor,
    base: nn.Linear,
    a: nn.ParameterDict,
    b: nn.ParameterDict,
    selection: Selection,
    scale: float,
) -> Tensor:
    """Multiply the utterances of all experts in one batched product, for inputs of few frames, as in a search."""
    y, groups = base(x), selection.groups
    a, b = groups.stack(a, b, y.dtype)
    x = x_lora.to(y.dtype)
    if groups.in_order:
        low = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a)  # (G, N, R)
        y.view(len(a), -1, y.shape[-1]).baddbmm_(low, b, alpha=scale)
        return y
    x = x[groups.order].view(len(a), -1, x.shape[-1])  # (G, N, D_in)
    update = torch.bmm(torch.bmm(x, a), b)  # (G, N, D_out)
    return y.add_(update.view(-1, *y.shape[1:])[groups.places], alpha=scale)

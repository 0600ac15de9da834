"""Faster forms of ``experts.expert_linear``, with its signature; ``choose`` is the one place where one is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from espnet_lole.lole.experts import ExpertLinear, Selection


def choose(layer: ExpertLinear, x: Tensor, selection: Selection) -> Callable[..., Tensor] | None:
    """Return the fastest form for an input (B, T, D_in) of a layer, or None for the plain one."""
    several = len(selection.runs) > 1
    if x.shape[1] < layer.rank and several and not torch.is_grad_enabled():
        return batched_expert_linear
    if not x.is_cuda:
        return inplace_expert_linear
    if several and len(selection.runs) == len(set(selection.langs)) and _can_be_grouped(layer.base.weight, layer.rank):
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


def inplace_expert_linear(layer: ExpertLinear, x: Tensor, selection: Selection) -> Tensor:
    """Add the update, and its gradient of x, in place to those of the frozen linear: on a CPU, copies cost as much."""
    dtype, x_lora = _product_dtype(layer.base.weight), layer.dropout(x)
    dropped = x_lora is not x
    factors = [factor for lang, _ in selection.runs for factor in (layer.lora_A[lang], layer.lora_B[lang])]
    counts = [count for _, count in selection.runs]
    x = x.to(dtype)
    inputs = x, x_lora.to(dtype) if dropped else x, layer.base, counts, layer.scale
    return (
        _InplaceExpertLinear.apply(*inputs, *factors) if torch.is_grad_enabled() else _add_updates(*inputs, factors)[0]
    )


def _add_updates(
    x: Tensor, x_lora: Tensor, base: nn.Linear, counts: list[int], scale: float, factors: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Compute y (B, T, D_out), and the low-rank states (rows, R) of each run of utterances."""
    y, low = F.linear(x, base.weight.to(x.dtype), None if base.bias is None else base.bias.to(x.dtype)), []
    for i, (x_run, y_run) in enumerate(zip(x_lora.split(counts), y.split(counts), strict=True)):
        a, b = (factor.to(x.dtype) for factor in factors[2 * i : 2 * i + 2])
        low.append(x_run.flatten(0, 1) @ a.T)
        y_run.view(-1, y.shape[-1]).addmm_(low[-1], b.T, alpha=scale)
    return y, low


class _InplaceExpertLinear(torch.autograd.Function):
    """``y = W0 x + bias + s B A x`` with a pair of factors (R, D_in), (D_out, R) for each run of utterances."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, x_lora: Tensor, base: nn.Linear, counts: list[int], scale: float, *factors: Tensor
    ) -> Tensor:
        """Compute y (B, T, D_out) from x and x_lora (B, T, D_in)."""
        y, low = _add_updates(x, x_lora, base, counts, scale, factors)
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


def grouped_expert_linear(layer: ExpertLinear, x: Tensor, selection: Selection) -> Tensor:
    """Multiply the utterances of all experts in two grouped products: launch overhead dominates on a GPU.

    Each expert's utterances lie together.
    """
    y, x_lora = layer.base(x), layer.dropout(x)
    factors = (layer.lora_A, layer.lora_B)
    a, b = (torch.stack([factor[lang] for lang, _ in selection.runs]).to(y.dtype) for factor in factors)
    ends = _run_ends(selection, x.shape[1], x.device)
    low = F.grouped_mm(x_lora.to(y.dtype).flatten(0, 1), a.mT, offs=ends)  # (B T, R)
    return y.add_(F.grouped_mm(layer.scale * low, b.mT, offs=ends).view_as(y))


def _run_ends(selection: Selection, frames: int, device: torch.device) -> Tensor:
    """Return where the rows of each run end, shape (number of runs,), if an utterance has ``frames`` rows."""
    if frames not in selection.cache:
        counts = torch.tensor([count * frames for _, count in selection.runs], device=device)
        selection.cache[frames] = counts.cumsum(0, dtype=torch.int32)
    return selection.cache[frames]


def batched_expert_linear(layer: ExpertLinear, x: Tensor, selection: Selection) -> Tensor:
    """Multiply the utterances of all experts in one batched product, for inputs of few frames, as in a search."""
    y = layer.base(x)
    if Groups not in selection.cache:
        selection.cache[Groups] = Groups(selection.langs, x.device)
    groups = selection.cache[Groups]
    if layer not in selection.cache:  # for all steps
        factors = (layer.lora_A, layer.lora_B)
        selection.cache[layer] = [torch.stack([f[lang].to(y.dtype) for lang in groups.langs]).mT for f in factors]
    a, b = selection.cache[layer]  # (G, D_in, R), (G, R, D_out)
    x = layer.dropout(x).to(y.dtype)
    if groups.in_order:
        low = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a)  # (G, N, R)
        y.view(len(a), -1, y.shape[-1]).baddbmm_(low, b, alpha=layer.scale)
        return y
    x = x[groups.order].view(len(a), -1, x.shape[-1])  # (G, N, D_in)
    update = torch.bmm(torch.bmm(x, a), b)  # (G, N, D_out)
    return y.add_(update.view(-1, *y.shape[1:])[groups.places], alpha=layer.scale)


class Groups:
    """The utterances of a batch in groups of one expert each, filled up to one size with copies of the first utterance.

    Args:
        langs: language of each utterance.
        device: where the experts are.

    Attributes:
        langs: language of each of the G groups.
        in_order: whether the batch has this order already.
        order: the utterance of each place in the groups, shape (G N,).
        places: the place of each utterance, shape (B,).
    """

    def __init__(self, langs: Sequence[str], device: torch.device) -> None:
        members: dict[str, list[int]] = {}
        for row, lang in enumerate(langs):
            members.setdefault(lang, []).append(row)
        self.langs = list(members)
        size = max(map(len, members.values()))
        order = [row for rows in members.values() for row in rows + [0] * (size - len(rows))]
        places = {row: g * size + i for g, rows in enumerate(members.values()) for i, row in enumerate(rows)}
        self.in_order = order == list(range(len(langs)))
        self.order = torch.tensor(order, device=device)
        self.places = torch.tensor([places[row] for row in range(len(langs))], device=device)

"""The cross-entropy of the output layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SCORES_AT_ONCE = 2**20
"""Scores that a CPU turns into probabilities together: 4 MB in float32, which stay in its cache. A GPU, which wants few and
large calls, takes 32 times as many."""
ALIGNMENT = 64
"""Rows of scores begin at multiples of so many: Whisper's 51865 columns, laid end to end, would slow the products down."""


def rows_at_once(scores: Tensor) -> int:
    """How many rows of scores (N, V) are turned into probabilities together."""
    return max(1, SCORES_AT_ONCE * (1 if scores.device.type == "cpu" else 32) // scores.shape[1])


def token_costs(scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each target token, and whether it is the likeliest one.

    Args:
        scores: of the vocabulary, float32, shape (N, V).
        wanted: token ids, shape (N,).

    Returns:
        Both of shape (N,).
    """
    hits = scores.gather(1, wanted[:, None])[:, 0] >= scores.amax(-1)  # on a CPU amax is ten times as fast as argmax
    return F.cross_entropy(scores, wanted, reduction="none"), hits.float()


def frozen_token_costs(states: Tensor, weight: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """As ``token_costs``, from the decoder's states and an output matrix that does not train.

    Nothing of the size of the scores is kept for the backward pass; the scores are in the precision of the matrix.

    Args:
        states: shape (N, D).
        weight: shape (V, D).
        wanted: token ids, shape (N,).

    Returns:
        Both of shape (N,).
    """
    return _FrozenTokenCosts.apply(states, weight, wanted)


def vocabulary_scores(states: Tensor, weight: Tensor) -> Tensor:
    """States (N, D) times the output matrix (V, D), shape (N, V), in the precision of the matrix or of autocast."""
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    width = -(-len(weight) // ALIGNMENT) * ALIGNMENT
    scores = states.new_empty(len(states), width, dtype=dtype)[:, : len(weight)]
    return torch.mm(states.to(dtype), weight.to(dtype).T, out=scores)


def costs_and_slopes(scores: Tensor, wanted: Tensor, with_slopes: bool) -> tuple[Tensor, Tensor]:
    """As ``token_costs``, in the memory of the scores, which become ``softmax(scores) - one_hot(wanted)`` with slopes."""
    costs, hits = (scores.new_empty(len(scores), dtype=torch.float32) for _ in range(2))
    parts = (x.split(rows_at_once(scores)) for x in (scores, wanted[:, None], costs[:, None], hits[:, None]))
    for some, ids, of_cost, of_hit in zip(*parts, strict=True):
        likeliest, of_wanted = (x.float() for x in (some.amax(-1, keepdim=True), some.gather(1, ids)))
        of_hit.copy_(of_wanted >= likeliest)
        exps = some.float().sub_(likeliest).exp_()
        total = exps.sum(-1, keepdim=True)
        of_cost.copy_(total.log() + likeliest - of_wanted)
        if with_slopes:
            some.copy_(exps.div_(total).scatter_add_(1, ids, -torch.ones_like(total)))
    return costs, hits


class _FrozenTokenCosts(torch.autograd.Function):
    """Cross-entropy with its gradient ``(softmax(W x) - one_hot) W`` taken as it is computed, in the memory of the scores."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, states: Tensor, weight: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        scores = vocabulary_scores(states, weight)
        costs, hits = costs_and_slopes(scores, wanted, ctx.needs_input_grad[0])
        ctx.mark_non_differentiable(hits)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(scores @ weight)
        return costs, hits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors  # (N, D)
        return grad[:, None] * slope, None, None

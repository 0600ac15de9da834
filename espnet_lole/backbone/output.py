"""The cross-entropy of the output layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SCORES_AT_ONCE = 2**20
"""Scores that a CPU turns into probabilities together: 4 MB in float32, which stay in its cache. A GPU, which wants few and
large calls, takes 32 times as many."""


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
    return F.cross_entropy(scores, wanted, reduction="none"), _hits(scores, wanted)


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


def _hits(scores: Tensor, wanted: Tensor) -> Tensor:
    """Is the target the likeliest token? On a CPU amax is ten times as fast as argmax."""
    return (scores.gather(1, wanted[:, None])[:, 0] >= scores.amax(-1)).float()


class _FrozenTokenCosts(torch.autograd.Function):
    """Cross-entropy with its gradient ``(softmax(W x) - one_hot) W`` taken as it is computed, in the memory of the scores."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, states: Tensor, weight: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        scores = states.to(weight.dtype) @ weight.T  # (N, V)
        costs, hits = (states.new_empty(len(states), dtype=torch.float32) for _ in range(2))
        parts = (x.split(rows_at_once(scores)) for x in (scores, wanted, costs, hits))
        for some, ids, of_cost, of_hit in zip(*parts, strict=True):
            log_probs = some.float().log_softmax(-1)
            of_cost.copy_(-log_probs.gather(1, ids[:, None])[:, 0])
            of_hit.copy_(_hits(log_probs, ids))
            if ctx.needs_input_grad[0]:
                some.copy_(log_probs.exp_().scatter_add_(1, ids[:, None], -torch.ones_like(ids[:, None], dtype=torch.float32)))
        ctx.mark_non_differentiable(hits)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(scores @ weight)
        return costs, hits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors  # (N, D)
        return grad[:, None] * slope, None, None

"""Losses of distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from espnet_lole.whisper.loss import costs_and_slopes, rows_at_once, vocabulary_scores

MAX_LOG_RATIO = 50.0  # beyond it the smaller probability is lost in float32


def cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """``1 - cos`` between the hidden states of student and teacher, as half the squared distance of the unit vectors.

    In this form equal states cost exactly 0.

    Args:
        student: shape (B, T, D).
        teacher: shape (B, T, D).
        mask: the positions that count, shape (B, T); None: all.

    Returns:
        Sum over the positions, and their number.
    """
    distance = F.normalize(student.float(), dim=-1) - F.normalize(teacher.float(), dim=-1)
    costs = 0.5 * distance.square().sum(-1)  # (B, T)
    if mask is None:
        return costs.sum(), torch.tensor(float(costs.numel()), device=costs.device)
    return (costs * mask).sum(), mask.sum().to(costs)


def taught_token_costs(
    states: Tensor, taught: Tensor, weight: Tensor, wanted: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of target tokens, and the divergence of the student's outputs from the teacher's, through a frozen matrix.

    Args:
        states: of the student's decoder, shape (N, D).
        taught: of the teacher's, for the first M of the tokens, shape (M, D); no gradient reaches them.
        weight: of the output layer, shape (V, D); no gradient reaches it.
        wanted: token ids, shape (N,).
        temperature: t, divides the scores in the divergence.

    Returns:
        Each token's cross-entropy and whether it is the likeliest, both of shape (N,); and the Jensen-Shannon divergence between
        softmax(student / t) and softmax(teacher / t), times the square of t, which keeps the gradient's size when t changes
        (Hinton et al., 2015), shape (M,). Equal outputs cost exactly 0.
    """
    return _TaughtTokenCosts.apply(states, taught, weight, wanted, temperature)


class _TaughtTokenCosts(torch.autograd.Function):
    """Both costs with their gradients taken as they are computed, in the memory of the scores; only these are kept."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, states: Tensor, taught: Tensor, weight: Tensor, wanted: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        own, theirs = vocabulary_scores(states, weight), vocabulary_scores(taught, weight)
        divergences = _divergences_and_slopes(own[: len(theirs)], theirs, temperature)
        costs, hits = costs_and_slopes(own, wanted, with_slopes=ctx.needs_input_grad[0])
        ctx.mark_non_differentiable(hits)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(own @ weight, theirs @ weight)
        return costs, hits, divergences

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_costs: Tensor, _: Tensor, of_divergences: Tensor) -> tuple[Tensor, None, None, None, None]:
        cost_slope, divergence_slope = ctx.saved_tensors  # (N, D), (M, D)
        of_states = of_costs[:, None] * cost_slope
        of_states[: len(divergence_slope)] += of_divergences[:, None] * divergence_slope
        return of_states, None, None, None, None


def _divergences_and_slopes(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The divergence of each row of scores (M, V), shape (M,); the teacher's become its gradient by the student's.

    With ``m`` the mean of ``p`` (student) and ``q``: ``JS = 1/2 sum(p log(p / m) + q log(q / m))`` and
    ``dJS / dscores = 1/2 p (log(p / m) - KL(p, m)) / t``. From ``d = log q - log p`` follow ``log(p / m) = -log((1 + e^d) / 2)``
    and ``log(q / m) = d + log(p / m)``, exactly 0 for equal scores.
    """
    divergences = student.new_empty(len(student), dtype=torch.float32)
    parts = (x.split(rows_at_once(student)) for x in (student, teacher, divergences[:, None]))
    for own, theirs, divergence in zip(*parts, strict=True):
        log_p, log_q = ((scores.float() / temperature).log_softmax(-1) for scores in (own, theirs))
        ratio = (log_q - log_p).clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        of_p = torch.expm1(ratio).div_(2).log1p_().neg_()  # log(p / m)
        p = log_p.exp_()
        kl_p = (p * of_p).sum(-1, keepdim=True)  # (rows, 1)
        kl_q = log_q.exp_().mul_(ratio.add_(of_p)).sum(-1, keepdim=True)
        divergence.copy_((kl_p + kl_q).mul_(temperature**2 / 2))
        theirs.copy_(of_p.sub_(kl_p).mul_(p).mul_(temperature / 2))
    return divergences

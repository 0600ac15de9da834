"""Losses of distillation, each as (sum, count)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet_lole.backbone.output import rows_at_once

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


class _JensenShannon(torch.autograd.Function):
    """Sum of the divergences between softmax(student / t) and softmax(teacher / t), with its gradient taken as it is computed.

    With ``m`` the mean of ``p`` (student) and ``q``: ``JS = 1/2 sum(p log(p / m) + q log(q / m))`` and
    ``dJS / dscores = 1/2 p (log(p / m) - KL(p, m)) / t``. From ``d = log q - log p`` follow ``log(p / m) = -log((1 + e^d) / 2)``
    and ``log(q / m) = d + log(p / m)``, exactly 0 for equal scores. Left to autograd, the passes over (N, V) would be twice as
    many; taken some rows at a time, all but the gradient stays in a processor's cache.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        slope = torch.empty_like(student)
        rows = rows_at_once(student)
        total = student.new_zeros((), dtype=torch.float32)
        for own, theirs, out in zip(student.split(rows), teacher.split(rows), slope.split(rows), strict=True):
            log_p, log_q = ((scores.float() / temperature).log_softmax(-1) for scores in (own, theirs))
            ratio = (log_q - log_p).clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO)
            of_p = torch.expm1(ratio).div_(2).log1p_().neg_()  # log(p / m)
            p = log_p.exp_()
            kl_p = (p * of_p).sum(-1, keepdim=True)  # (rows, 1)
            kl_q = (log_q.exp_() * ratio.add_(of_p)).sum()
            total += 0.5 * (kl_p.sum() + kl_q)
            out.copy_(of_p.sub_(kl_p).mul_(p).mul_(0.5 / temperature))
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def js_loss(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Jensen-Shannon divergence between the output distributions, times the temperature squared.

    The square keeps the gradient's size when the temperature changes (Hinton et al., 2015). Equal scores cost exactly 0.

    Args:
        student: scores, shape (N, V).
        teacher: scores, shape (N, V); no gradient reaches them.
        temperature: divides the scores.

    Returns:
        Sum over the N tokens, and N.
    """
    total = _JensenShannon.apply(student, teacher, temperature)
    return temperature**2 * total, torch.tensor(float(len(student)), device=student.device)

"""Losses of distillation, each as (sum, count)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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


def js_loss(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Jensen-Shannon divergence between the output distributions, times the temperature squared.

    With ``d = log q - log p``: ``JS = -1/2 sum(p log((1 + e^d) / 2) + q log((1 + e^-d) / 2))``, exactly 0 for equal scores.
    The square keeps the gradient's size when the temperature changes (Hinton et al., 2015).

    Args:
        student: scores, shape (N, V).
        teacher: scores, shape (N, V).
        temperature: divides the scores.

    Returns:
        Sum over the N tokens, and N.
    """
    log_p, log_q = (scores.float().div(temperature).log_softmax(-1) for scores in (student, teacher))
    ratio = (log_q - log_p).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    half = log_p.exp() * torch.log1p(torch.expm1(ratio) / 2) + log_q.exp() * torch.log1p(torch.expm1(-ratio) / 2)
    return -0.5 * temperature**2 * half.sum(), torch.tensor(float(len(student)), device=student.device)

"""A student's start: the best approximation of the experts' average by one LoRA."""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_lole.experts.bank import ExpertBank


def truncated_average(a: Tensor, b: Tensor, weights: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors of the truncated SVD of ``sum_e w_e B_e A_e``, without forming that matrix.

    With the QR decompositions ``[w_e B_e] = Q1 R1`` and ``[A_e]^T = Q2 R2``, the singular values are those of the small core
    ``R1 R2^T``, and the singular vectors are its own, turned by Q1 and Q2. No matrix of that rank is nearer (Eckart and Young).

    Args:
        a: shape (E, R, in_dim).
        b: shape (E, out_dim, R).
        weights: shape (E,).
        rank: K of the result.

    Returns:
        A of shape (k, in_dim) and B of shape (out_dim, k) for ``k = min(K, E R, in_dim, out_dim)``, with the root of the singular
        values in each, and the share of the sum's energy (squared Frobenius norm) that they keep.
    """
    left = (weights[:, None, None] * b).transpose(0, 1).flatten(1)  # (out_dim, E R)
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(a.flatten(0, 1).mT)  # of (in_dim, E R)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
    k = min(rank, len(s))
    root = s[:k].sqrt()
    energy = float(s[:k].square().sum() / s.square().sum().clamp(min=torch.finfo(s.dtype).tiny))
    return root[:, None] * (vh[:k] @ q_right.mT), (q_left @ u[:, :k]) * root, energy


@torch.no_grad()
def start_student(student: ExpertBank, experts: ExpertBank, weights: Tensor | None = None) -> dict[str, float]:
    """Set a student to the truncated average of the experts; ranks beyond theirs keep the random start (zero update).

    Args:
        student: a bank of one adapter on the linears of the experts.
        experts: the bank to average.
        weights: of the experts, shape (E,); uniform by default.

    Returns:
        For each linear, the share of the average's energy that the student keeps.

    Raises:
        ValueError: the student does not have the experts' linears.
    """
    if set(student.layers) != set(experts.layers):
        differ = sorted(set(student.layers) ^ set(experts.layers))
        raise ValueError(
            f"expected a student on the linears of the experts, got {len(differ)} that differ, e.g. {differ[0]}: give "
            f"expert_conf the experts' targets {list(experts.config.targets)}"
        )
    weights = torch.full((len(experts.languages),), 1 / len(experts.languages)) if weights is None else weights
    kept = {}
    for name, own in student.layers.items():
        theirs = experts.layers[name]
        a, b, kept[name] = truncated_average(theirs.lora_A, theirs.lora_B, weights.to(theirs.lora_A), student.config.rank)
        own.lora_A[0, : len(a)] = a
        own.lora_B[0, :, : len(a)] = b * (theirs.scale / own.scale)
    return kept

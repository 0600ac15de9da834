"""A student's start: the best approximation of the experts' average by one LoRA."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet_lole.lole.bank import ExpertBank


@dataclass(frozen=True)
class Triangular:
    """QR decomposition of a matrix of shape (m, n), with Q left as ``k = min(m, n)`` Householder reflectors.

    Attributes:
        r: shape (k, n).
        reflectors: shape (m, k).
        tau: their factors, shape (k,).
    """

    r: Tensor
    reflectors: Tensor
    tau: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Triangular:
        """Decompose."""
        packed, tau = torch.geqrf(matrix)
        return cls(packed[: len(tau)].triu(), packed[:, : len(tau)], tau)

    def turn(self, vectors: Tensor) -> Tensor:
        """Q times vectors of shape (k, l): shape (m, l). Cheaper than Q itself."""
        padded = F.pad(vectors, (0, 0, 0, len(self.reflectors) - len(vectors)))
        return torch.ormqr(self.reflectors, self.tau, padded)


def average_core(a: Tensor, b: Tensor, weights: Tensor) -> tuple[Triangular, Triangular]:
    """``[w_e B_e] = Q1 R1`` and ``[A_e]^T = Q2 R2``: ``sum_e w_e B_e A_e`` is ``Q1 (R1 R2^T) Q2^T``, and never formed.

    Args:
        a: shape (E, R, in_dim).
        b: shape (E, out_dim, R).
        weights: shape (E,).
    """
    left = (weights[:, None, None] * b.mT).flatten(0, 1)  # (E R, out_dim)
    return Triangular.of(left.mT), Triangular.of(a.flatten(0, 1).mT)


def truncated_average(a: Tensor, b: Tensor, weights: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors of the truncated SVD of ``sum_e w_e B_e A_e``; no matrix of that rank is nearer (Eckart and Young).

    The singular values are those of the small core ``R1 R2^T`` of ``average_core``, and the singular vectors its own, turned.

    Args:
        a: shape (E, R, in_dim).
        b: shape (E, out_dim, R).
        weights: shape (E,).
        rank: K of the result.

    Returns:
        A of shape (k, in_dim) and B of shape (out_dim, k) for ``k = min(K, E R, in_dim, out_dim)``, with the root of the singular
        values in each, and the share of the sum's energy (squared Frobenius norm) that they keep.
    """
    left, right = average_core(a, b, weights)
    u, s, vh = torch.linalg.svd(left.r @ right.r.mT, full_matrices=False)
    k = min(rank, len(s))
    root = s[:k].sqrt()
    return right.turn(vh[:k].mT * root).mT, left.turn(u[:, :k] * root), float(kept_energy(s)[k - 1])


def kept_energy(values: Tensor) -> Tensor:
    """The share of the energy (squared Frobenius norm) in the first 1 .. k of the singular values, shape (k,)."""
    energy = values.square().cumsum(0)
    return energy / energy[-1].clamp(min=torch.finfo(values.dtype).tiny)


@torch.no_grad()
def energy_by_layer(experts: ExpertBank) -> dict[str, Tensor]:
    """How much of the experts' average each rank keeps.

    Returns:
        ``enc1``, ..., ``dec1``, ... -> share of the energy at rank 1 .. k, the mean over the layer's linears, shape (k,); k is
        the least over the layer's linears.
    """
    shares: dict[str, list[Tensor]] = {}
    for name, layer in experts.layers.items():
        part, number = re.fullmatch(r".*(enc|dec)oder\.layers\.(\d+)\..*", name).groups()
        uniform = torch.full((len(experts.languages),), 1 / len(experts.languages)).to(layer.lora_A)
        left, right = average_core(layer.lora_A, layer.lora_B, uniform)
        shares.setdefault(f"{part}{int(number) + 1}", []).append(kept_energy(torch.linalg.svdvals(left.r @ right.r.mT)))
    ranks = {key: min(map(len, values)) for key, values in shares.items()}
    return {key: torch.stack([v[: ranks[key]] for v in values]).mean(0) for key, values in shares.items()}


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

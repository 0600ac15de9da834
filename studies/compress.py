"""Smaller experts: cut to a lower rank, on a basis shared by the languages, or in 8 bits.

Each function maps the stacked factors of a linear, A of shape (E, R, D_in) and B of shape (E, D_out, R), to factors
with the values of the compressed ones; ``BYTES`` computes the size of these on disk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FLOAT, SCALE = 4, 2
"""Bytes of a number in float32, and of the float16 scale of an 8-bit row."""


def truncate(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Compute the nearest update of a lower rank for each expert: A (E, rank, D_in), B (E, D_out, rank)."""
    q_left, r_left = torch.linalg.qr(b)  # (E, D_out, R), (E, R, R)
    q_right, r_right = torch.linalg.qr(a.mT)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
    root = s[:, :rank].sqrt()
    return root[..., None] * (vh[:, :rank] @ q_right.mT), (q_left @ u[..., :rank]) * root[:, None]


def share_basis(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Approximate ``B_e A_e`` by ``U C_e V^T``, U and V shared by all languages: A is V^T for each, B is ``U C_e``.

    U and V are the ``rank`` directions with the most energy of all updates together, on either side.
    """
    r_right, r_left = (torch.linalg.qr(x, mode="r")[1] for x in (a.mT, b))  # (E, R, R): B_e A_e has the U of B_e R^T
    u = torch.linalg.svd((b @ r_right.mT).transpose(0, 1).flatten(1), full_matrices=False)[0][:, :rank]  # (D_out, rank)
    v = torch.linalg.svd((a.mT @ r_left.mT).transpose(0, 1).flatten(1), full_matrices=False)[0][
        :, :rank
    ]  # (D_in, rank)
    core = (u.T @ b) @ (a @ v)  # (E, rank, rank)
    return v.T.expand(len(a), -1, -1).contiguous(), u @ core


def quantize(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Round each of the R rows of A and columns of B to 8 bits with a scale for each; ``rank`` has no effect."""
    return _round(a, -1), _round(b, 1)


def _round(x: Tensor, axis: int) -> Tensor:
    scale = (x.abs().amax(axis, keepdim=True) / 127).half().to(x)
    return torch.where(scale > 0, (x / scale).round().clamp(-127, 127) * scale, 0.0)


METHODS: dict[str, Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]] = {
    "svd": truncate,
    "basis": share_basis,
    "int8": quantize,
}
"""Name -> function that compresses the factors of a linear."""

BYTES: dict[str, Callable[[int, int, int, int], float]] = {
    "svd": lambda num, rank, in_dim, out_dim: FLOAT * rank * (in_dim + out_dim),
    "basis": lambda num, rank, in_dim, out_dim: FLOAT * (rank**2 + rank * (in_dim + out_dim) / num),
    "int8": lambda num, rank, in_dim, out_dim: rank * (in_dim + out_dim + 2 * SCALE),
}
"""Name -> bytes of a linear for each of ``num`` languages, from the rank and the dimensions of the linear."""

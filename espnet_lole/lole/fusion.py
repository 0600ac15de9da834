"""Linears whose experts are merged into one by learnable weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lole.lole.experts import ExpertLinear


def merge_factors(weights: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge A and B each (the paper's form): ``A^ = sum_e w_0e A_e``, ``B^ = sum_e w_1e B_e``.

    The update ``B^ A^`` has the rank of one expert and holds the cross terms ``w_1i w_0j B_i A_j``; with uniform weights it is
    ``mean(B) mean(A)``, smaller than the mean of the products.

    Args:
        weights: shape (2, E).
        a: shape (E, R, in_dim).
        b: shape (E, out_dim, R).

    Returns:
        Factors of shapes (R, in_dim) and (out_dim, R).
    """
    return torch.einsum("e,erd->rd", weights[0], a), torch.einsum("e,eor->or", weights[1], b)


def merge_products(weights: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the updates, ``sum_e w_e B_e A_e``: no cross terms, rank up to E R.

    Args:
        weights: shape (1, E).
        a: shape (E, R, in_dim).
        b: shape (E, out_dim, R).

    Returns:
        Factors of shapes (E R, in_dim) and (out_dim, E R).
    """
    return a.flatten(0, 1), (weights[0, :, None, None] * b).transpose(0, 1).flatten(1)


FORMS: dict[str, tuple[int, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    "factors": (2, merge_factors),
    "delta": (1, merge_products),
}
"""Name of a form: how many weights an expert has in it, and how it merges."""
SHARING: dict[str, Callable[[str], str]] = {
    "module": lambda name: name,
    "layer": lambda name: ".".join(name.split(".")[: name.split(".").index("layers") + 2]),
    "global": lambda name: "all",
}
"""Which linears, by their name in the model, have the same weights."""
NORMALISE: dict[str, Callable[[Tensor], Tensor]] = {"softmax": lambda x: x.softmax(-1), "free": lambda x: x}


@dataclass(frozen=True)
class FusionConfig:
    """How the shallow layers are merged.

    Attributes:
        shared_layers: L1: encoder layers ``1 .. L1`` are merged.
        form: ``factors`` merges A and B each, ``delta`` their products.
        weights: a weight for each expert per ``module``, per ``layer`` or ``global``.
        normalise: ``softmax`` over the experts, or ``free``.
    """

    shared_layers: int
    form: str = "factors"
    weights: str = "module"
    normalise: str = "softmax"

    def __post_init__(self) -> None:
        for name, known in (("form", FORMS), ("weights", SHARING), ("normalise", NORMALISE)):
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} of fusion_conf to be one of {sorted(known)}, got {getattr(self, name)!r}")


class Fusion(nn.Module):
    """The weights of the experts in the merged linears, uniform at the start.

    Args:
        names: the merged linears.
        num_experts: E.
        config: how they are merged.
    """

    def __init__(self, names: Sequence[str], num_experts: int, config: FusionConfig) -> None:
        super().__init__()
        share = SHARING[config.weights]
        self.groups = list(dict.fromkeys(share(name) for name in names))
        self.group_of = {name: self.groups.index(share(name)) for name in names}
        self._normalise = NORMALISE[config.normalise]
        start = 0.0 if config.normalise == "softmax" else 1 / num_experts
        self.raw = nn.Parameter(torch.full((len(self.groups), FORMS[config.form][0], num_experts), start))

    def weights(self) -> Tensor:
        """The normalised weights, shape (G, P, E): group of linears, factor, expert."""
        return self._normalise(self.raw)

    def of(self, name: str) -> Tensor:
        """The weights of a linear, shape (P, E)."""
        return self._normalise(self.raw[self.group_of[name]])


class FusedLinear(nn.Module):
    """``h = W0 x + b + (alpha / R) B^ A^ x`` for every utterance, with factors merged from all experts.

    Args:
        experts: the linear with its experts, frozen.
        weights: gives the weights, shape (P, E).
        merge: one of ``FORMS``.
    """

    def __init__(self, experts: ExpertLinear, weights: Callable[[], Tensor], merge: Callable) -> None:
        super().__init__()
        self.experts = experts
        self._weights = weights
        self._merge = merge

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, in_dim) to (B, T, out_dim)."""
        a, b = self._merge(self._weights(), self.experts.lora_A, self.experts.lora_B)
        return self.experts.base(x) + self.experts.scale * F.linear(F.linear(x, a), b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear with the update in its weight, in the precision of ``W0``."""
        base = self.experts.base
        a, b = self._merge(self._weights(), self.experts.lora_A, self.experts.lora_B)
        linear = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
        linear.weight = nn.Parameter((base.weight.float() + self.experts.scale * b @ a).to(base.weight.dtype), False)
        linear.bias = base.bias
        return linear

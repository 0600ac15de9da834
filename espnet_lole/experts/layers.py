"""A frozen linear with the LoRA experts of all languages on it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Route:
    """The way of a batch: the expert of each utterance, shape (B,); or several, (B, K), with their weights, (B, K).

    Without an index, the backbone alone.
    """

    index: Tensor | None = None
    weights: Tensor | None = None

    @contextmanager
    def led(self, index: Tensor | None, weights: Tensor | None) -> Iterator[None]:
        """Within the context, the way is another."""
        before = self.index, self.weights
        self.index, self.weights = index, weights
        try:
            yield
        finally:
            self.index, self.weights = before


class ExpertLinear(nn.Module):
    """``h = W0 x + b + (alpha / R) B_e A_e x`` with the expert ``e`` of each utterance.

    The factors of all experts are stacked; a mixed batch gathers those of its utterances and takes two batched products.

    A bank of one adapter multiplies with it as it is. On linears that have experts already, ``W0 x + b`` is what those give.

    Args:
        base: the frozen linear, ``in_dim`` to ``out_dim``, with or without experts.
        route: shared by all layers of a bank, set before each forward pass.
        num_experts: E.
        rank: R.
        scale: ``alpha / R``.
        dropout: probability of dropping an input of the experts in training.
    """

    def __init__(
        self, base: nn.Linear | ExpertLinear, route: Route, num_experts: int, rank: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.route = route
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.in_features, self.out_features = base.in_features, base.out_features
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(num_experts, rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(num_experts, base.out_features, rank, device=device))

    @property
    def weight(self) -> Tensor:
        """``W0``, shape (out_dim, in_dim)."""
        return self.base.weight

    def reset(self, name: str, languages: Sequence[str], seed: int) -> None:
        """Draw A (Kaiming uniform) and zero B; an expert's start depends on its language, not on its neighbours."""
        if self.lora_A.is_meta:
            return
        bound = 1 / math.sqrt(self.lora_A.shape[2])
        with torch.no_grad():
            for row, lang in enumerate(languages):
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {lang} {name}".encode()))
                start = torch.rand(self.lora_A.shape[1:], generator=generator) * (2 * bound) - bound
                self.lora_A[row] = start.to(self.lora_A)
            self.lora_B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, in_dim) to (B, T, out_dim)."""
        y = self.base(x)
        if self.route.index is None:
            return y
        if len(self.lora_A) == 1 and self.route.weights is None:
            return y + self.scale * F.linear(F.linear(self.dropout(x), self.lora_A[0]), self.lora_B[0])
        a, b = self._chosen()
        z = torch.bmm(self.dropout(x), a.mT)  # (B, T, R)
        return torch.baddbmm(y, z, b.mT, alpha=self.scale)

    def _chosen(self) -> tuple[Tensor, Tensor]:
        """Factors of each utterance, (B, R, in_dim) and (B, out_dim, R); a mixture of K experts is one of rank K R."""
        index, weights = self.route.index, self.route.weights
        a, b = (factor.index_select(0, index.flatten()) for factor in (self.lora_A, self.lora_B))
        if weights is None:
            return a, b
        a, b = a.unflatten(0, index.shape), b.unflatten(0, index.shape) * weights[..., None, None]  # (B, K, ...)
        return a.flatten(1, 2), b.transpose(1, 2).flatten(2)


def hold_routes(model: nn.Module) -> AbstractContextManager[None]:
    """A context, for later, in which every bank in the model leads where it leads now."""
    routes = {id(module.route): module.route for module in model.modules() if isinstance(module, ExpertLinear)}
    return _led([(route, route.index, route.weights) for route in routes.values()])


@contextmanager
def _led(ways: Sequence[tuple[Route, Tensor | None, Tensor | None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for route, index, weights in ways:
            stack.enter_context(route.led(index, weights))
        yield

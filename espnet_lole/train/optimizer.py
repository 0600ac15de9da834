"""AdamW for stacked experts: each is clipped, counted and moved as if it were trained alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

PARTS = 64
"""At most so many parts of an expert's parameter have their norms taken at a time."""


@dataclass
class _Stacked:
    """A stacked parameter and its state: where they lie, each expert's weights, moments and step, and its count of steps."""

    places: tuple[int, ...]
    rows: list[tuple[Tensor, ...]]
    counts: list[float]


class ExpertAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) over parameters whose first axis is the expert, shape (E, ...).

    Gradients are clipped to ``max_grad_norm`` over each expert's own parameters. An expert whose gradient is zero in
    every parameter was absent from the batch: its weights, moments and step count stay as they are.

    Args:
        params: stacked parameters.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled.
        max_grad_norm: largest 2-norm of an expert's gradient.

    Raises:
        ValueError: the parameters do not have the same number of experts.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        max_grad_norm: float = float("inf"),
    ) -> None:
        params = list(params)
        if len({p.shape[0] for p in params}) != 1:
            raise ValueError(
                f"expected parameters of one number of experts, got first axes {sorted({p.shape[0] for p in params})}"
            )
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        super().__init__(params, {**defaults, "fused": True})  # torch then resumes "step" on the parameters' device
        self._stacked: dict[Tensor, _Stacked] = {}
        self._known: tuple[list[tuple[int, int]], Tensor] | None = None  # gradients that were looked at, and the experts' norms

    @torch.no_grad()
    def drop_broken(self) -> tuple[list[int], Tensor]:
        """Zero the gradient of each expert that has NaN or infinity in it, so that ``step`` does not move it.

        Returns:
            The experts dropped, and the norm of the gradients of the others: 0 where no other has one.
        """
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not params:
            return [], torch.zeros(())
        norms = expert_norms([p.grad for p in params])  # (E,)
        broken = ~norms.isfinite()
        rows = broken.nonzero()[:, 0].tolist()
        for p in params:
            for row in rows:
                p.grad[row].zero_()
        norms = norms.masked_fill(broken, 0.0)
        self._known = _versions(params), norms
        return rows, norms.norm()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move the experts that have a gradient, which is clipped in place."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        known, self._known = self._known, None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                norms = known[1] if known and known[0] == _versions(params) else expert_norms([p.grad for p in params])
                self._move(params, norms, group)
        return loss

    def _move(self, params: list[Tensor], norms: Tensor, group: dict) -> None:
        """The fused AdamW of torch: one call where all experts are there and of one count, else one for each."""
        beta1, beta2 = group["betas"]
        move = partial(
            adamw,
            max_exp_avg_sqs=[],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        divisors = ((norms + 1e-6) / group["max_grad_norm"]).clamp(min=1.0)  # (E,)
        present, clipped = torch.stack([norms, divisors]).tolist()
        moving = [row for row, norm in enumerate(present) if norm]
        stacked = [self._taken_apart(p) for p in params]
        grads = [p.grad for p in params]
        if len(moving) == len(present) and all(len(set(of.counts)) == 1 for of in stacked):
            if set(clipped) != {1.0}:
                torch._foreach_div_(grads, [divisors.view(-1, *[1] * (grad.dim() - 1)) for grad in grads])
            means, squares, steps = ([self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq", "step"))
            move(params, grads, means, squares, state_steps=[step[0] for step in steps])
            torch._foreach_add_([step[1:] for step in steps], 1.0)  # the first was counted
        else:
            of_rows = list(zip(*(grad.unbind() for grad in grads), strict=True))
            for row in moving:
                weights, means, squares, steps = map(list, zip(*(of.rows[row] for of in stacked), strict=True))
                move(weights, list(of_rows[row]), means, squares, state_steps=steps, grad_scale=divisors[row])
        for of in stacked:
            for row in moving:
                of.counts[row] += 1.0

    def _taken_apart(self, p: Tensor) -> _Stacked:
        """A parameter and its state, taken apart again only if they were moved in memory."""
        state = self.state[p]
        if not state:
            steps = torch.zeros(p.shape[0], dtype=torch.float32, device=p.device)
            state |= {"step": steps, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        tensors = p, state["exp_avg"], state["exp_avg_sq"], state["step"]
        places = tuple(x.data_ptr() for x in tensors)
        if p not in self._stacked or self._stacked[p].places != places:
            rows = list(zip(*(x.unbind() for x in tensors), strict=True))
            self._stacked[p] = _Stacked(places, rows, state["step"].tolist())
        return self._stacked[p]


def _versions(params: list[Tensor]) -> list[tuple[int, int]]:
    """What tells whether gradients are the same as before: which tensors they are, and how often each was changed."""
    return [(id(p.grad), p.grad._version) for p in params]


def expert_norms(grads: list[Tensor]) -> Tensor:
    """The 2-norm of each expert's gradient over all its parameters, shape (E,), from stacked gradients (E, ...).

    In two stages, of which the first has enough parts for a GPU to work on all of it.
    """
    parts = (grad.reshape(len(grad), math.gcd(grad[0].numel(), PARTS), -1) for grad in grads)
    return torch.cat([torch.linalg.vector_norm(part, dim=2) for part in parts], 1).norm(dim=1)

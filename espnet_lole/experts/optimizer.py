"""AdamW for stacked experts: each is clipped, counted and moved as if it were trained alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


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
        self._rows: dict[Tensor, tuple[tuple[int, ...], list[tuple[Tensor, ...]]]] = {}
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
        norms = expert_norms([p.grad.unbind() for p in params])  # (E,)
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
                grads = [p.grad.unbind() for p in params]
                norms = known[1] if known and known[0] == _versions(params) else expert_norms(grads)
                self._move(params, grads, norms, group)
        return loss

    def _move(self, params: list[Tensor], grads: list[tuple[Tensor, ...]], norms: Tensor, group: dict) -> None:
        """The fused AdamW of torch on each expert's rows, which it clips as it reads them, with the expert's own step count."""
        divisors = ((norms + 1e-6) / group["max_grad_norm"]).clamp(min=1.0)  # (E,)
        beta1, beta2 = group["betas"]
        kept = [self._rows_of(p) for p in params]
        for row in norms.nonzero()[:, 0].tolist():
            weights, means, squares, steps = (list(tensors) for tensors in zip(*(rows[row] for rows in kept), strict=True))
            adamw(
                weights,
                [rows[row] for rows in grads],
                means,
                squares,
                max_exp_avg_sqs=[],
                state_steps=steps,
                fused=True,
                grad_scale=divisors[row],
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def _rows_of(self, p: Tensor) -> list[tuple[Tensor, ...]]:
        """Weights, moments and step count of each expert in a stacked parameter; taken apart again only if they were moved."""
        state = self.state[p]
        if not state:
            steps = torch.zeros(p.shape[0], dtype=torch.float32, device=p.device)
            state |= {"step": steps, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        tensors = p, state["exp_avg"], state["exp_avg_sq"], state["step"]
        places = tuple(x.data_ptr() for x in tensors)
        if p not in self._rows or self._rows[p][0] != places:
            self._rows[p] = places, list(zip(*(x.unbind() for x in tensors), strict=True))
        return self._rows[p][1]


def _versions(params: list[Tensor]) -> list[tuple[int, int]]:
    """What tells whether gradients are the same as before: which tensors they are, and how often each was changed."""
    return [(id(p.grad), p.grad._version) for p in params]


def expert_norms(grads: list[tuple[Tensor, ...]]) -> Tensor:
    """The 2-norm of each expert's gradient over all its parameters, shape (E,), from those of each parameter, E each."""
    norms = torch._foreach_norm([row for rows in grads for row in rows])
    return torch.stack(norms).view(len(grads), -1).norm(dim=0)

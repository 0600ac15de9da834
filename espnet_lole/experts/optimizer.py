"""AdamW for stacked experts: each is clipped, counted and moved as if it were trained alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


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
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move the experts that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            norms = expert_norms([p.grad for p in params])  # (E,)
            rows = norms.nonzero()[:, 0]
            clip = (group["max_grad_norm"] / (norms[rows] + 1e-6)).clamp(max=1.0)
            for p in params:
                self._move(p, rows, clip, group)
        return loss

    def _move(self, p: Tensor, rows: Tensor, clip: Tensor, group: dict) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(p.shape[0], dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        beta1, beta2 = group["betas"]
        over = (-1, *[1] * (p.dim() - 1))  # an expert's figure over its parameters
        grad = p.grad[rows] * clip.view(over)
        step = state["step"][rows] + 1
        mean = torch.lerp(state["exp_avg"][rows], grad, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        size = group["lr"] / (1 - beta1**step)
        root = (square.sqrt() / (1 - beta2**step).sqrt().view(over)).add_(group["eps"])
        p[rows] = p[rows].mul_(1 - group["lr"] * group["weight_decay"]) - size.view(over) * mean / root
        state["step"][rows], state["exp_avg"][rows], state["exp_avg_sq"][rows] = step, mean, square


def expert_norms(grads: list[Tensor]) -> Tensor:
    """The 2-norm of each expert's gradient over all its parameters, shape (E,), from tensors (E, ...)."""
    return torch.stack([torch.linalg.vector_norm(g.float(), dim=tuple(range(1, g.dim()))) for g in grads]).norm(dim=0)

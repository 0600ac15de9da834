"""AdamW for language experts: each is clipped, counted and moved as if it were trained alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


class ExpertAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, 2019) in which the gradient of each expert is clipped over its own parameters.

    An expert that is absent from a batch has no gradient: its weights, moments and step count stay as they are. An
    expert whose gradient is not finite is left out of the step.

    Args:
        experts: language -> the parameters of its expert.
        max_grad_norm: largest 2-norm of an expert's gradient.
        options: of ``torch.optim.AdamW``.
    """

    def __init__(
        self, experts: Mapping[str, Sequence[nn.Parameter]], max_grad_norm: float = float("inf"), **options: Any
    ) -> None:
        super().__init__([p for params in experts.values() for p in params], **{"fused": True, **options})
        self._experts = {lang: list(params) for lang, params in experts.items()}
        self._max_grad_norm = max_grad_norm
        self._skipped: Counter[str] = Counter()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Clip each expert's gradient in place, and move the experts that have a finite one."""
        params = {lang: [p for p in own if p.grad is not None] for lang, own in self._experts.items()}
        params = {lang: own for lang, own in params.items() if own}
        norms = self._norms(params)
        for (lang, own), norm in zip(params.items(), norms, strict=True):
            if norm.isfinite():
                clip_grads_with_norm_(own, self._max_grad_norm, norm)
            else:
                logging.warning(f"the gradient of {lang} is not finite: this step does not move its expert")
                self._skipped[lang] += 1
                for p in own:
                    p.grad = None
        return super().step(closure)

    def report_skipped(self) -> None:
        """Log how many updates of each expert were left out since the last call."""
        if self._skipped:
            counts = ", ".join(f"{lang} {count}" for lang, count in self._skipped.items())
            logging.warning(f"updates of experts left out because their gradient was not finite: {counts}")
        self._skipped.clear()

    @staticmethod
    def _norms(params: Mapping[str, Sequence[nn.Parameter]]) -> Tensor:
        """Return the 2-norm of each expert's gradient, on the CPU: one wait for a GPU instead of one for each."""
        norms = [get_total_norm([p.grad for p in own]) for own in params.values()]
        return torch.stack(norms).cpu() if norms else torch.zeros(0)

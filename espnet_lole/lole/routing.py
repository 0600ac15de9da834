"""From posteriors to the way of each utterance through the experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RoutingConfig:
    """How utterances of unknown language are routed.

    Attributes:
        experts: how many of the likeliest languages' experts are mixed by their posteriors; 1 is the paper's argmax,
            0 mixes all.
        candidates: an unsure utterance is decoded under this many of its likeliest languages, of which the best
            hypothesis is kept (after Kwok et al., 2025); 1: off.
        threshold: an utterance is unsure if its likeliest language has a posterior below this.
        posterior_weight: the best hypothesis has the largest score + this times the log posterior of its language.
    """

    experts: int = 1
    candidates: int = 1
    threshold: float = 0.9
    posterior_weight: float = 1.0

    def __post_init__(self) -> None:
        if min(self.experts, self.posterior_weight) < 0 or self.candidates < 1 or not 0 <= self.threshold <= 1:
            raise ValueError(f"expected experts and posterior_weight >= 0, candidates >= 1 and threshold in [0, 1], got {self}")
        if self.experts != 1 and self.candidates > 1:
            raise ValueError(f"expected either a mixture of experts or several candidates, got {self}: set one of them to 1")


@dataclass(frozen=True)
class Plan:
    """The rows to run: an utterance has several if it is decoded under several languages. Those of an expert lie together.

    Attributes:
        rows: the utterance of each row, shape (N,).
        language: index of the language whose token the prompt has, shape (N,).
        experts: the experts of each row, shape (N,), or (N, K) of a mixture.
        weights: of a mixture's experts, shape (N, K), or None.
    """

    rows: Tensor
    language: Tensor
    experts: Tensor
    weights: Tensor | None


def plan_given(language: Tensor) -> Plan:
    """Every utterance through the expert of its given language, shape (B,)."""
    rows = language.argsort(stable=True)
    return Plan(rows, language[rows], language[rows], None)


def plan_found(posteriors: Tensor, config: RoutingConfig) -> Plan:
    """Every utterance by its posteriors, shape (B, E), each row summing to 1."""
    num = posteriors.shape[1]
    top, order = posteriors.sort(dim=1, descending=True)  # (B, E)
    if config.experts != 1:
        k = min(config.experts or num, num)
        weights = top[:, :k] / top[:, :k].sum(1, keepdim=True)
        rows = torch.arange(len(top), device=top.device)
        return Plan(rows, order[:, 0], order[:, :k], weights)
    k = min(config.candidates, num)
    wanted = torch.arange(k, device=top.device)[None] < torch.where(top[:, :1] < config.threshold, k, 1)  # (B, k)
    rows, rank = wanted.nonzero(as_tuple=True)
    language = order[rows, rank]
    together = language.argsort(stable=True)
    return Plan(rows[together], language[together], language[together], None)

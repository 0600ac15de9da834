"""How near the matrix products' own rate a training step and a search come, and what keeps them from it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.decoding import with_experts
from benchmarks.harness import Outcome, Size, Work, alternate
from benchmarks.systems import utterances
from benchmarks.training import espnet_step, experts_step, seconds_by_name
from espnet_lole.train.estimate import UNCOUNTED

SQUARE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product is the measure."""
LARGER = {"cpu": 2, "cuda": 8}
"""How many times as many utterances a large batch has."""
GROUPED = {torch.ops.aten._grouped_mm: lambda left, right, *_, **__: 2 * math.prod(left) * right[-1]}
"""How many operations a grouped product has, which torch does not count by itself."""


def limits(size: Size) -> Outcome:
    """TFLOP/s of steps and searches, as a share of those of one large matrix product, and how long the GPU works in them."""
    out = Outcome()
    side = SQUARE[size.device] if size.width > 100 else 64
    left, right = (torch.randn(side, side, device=size.device, dtype=size.precision) for _ in range(2))
    rates = [2 * side**3 / s / 1e12 for s in alternate({"product": lambda: left @ right}, 3 * size.repeats)["product"]]
    out.add("limits", f"a product of {side} x {side}", "TFLOP/s", rates)
    best = max(rates)
    for count in (size.train_batch, LARGER[size.device] * size.train_batch):
        audio = count * size.seconds
        larger = replace(size, train_batch=count)
        for name, make in (("experts", experts_step), ("ESPnet + loralib", espnet_step)):
            _limit(out, size, f"step of {count} utterances, {name}", make(larger), best, "s of audio/s", audio)
    for count, beam in ((size.decode_batch, size.beam), (4 * size.decode_batch, 1)):
        larger = replace(size, decode_batch=count, beam=beam)
        speech: list[Tensor] = list(utterances(larger, count)[0])
        name = f"search of {count} utterances, beam {beam}, experts"
        _limit(out, size, name, with_experts(larger, speech), best, "tokens/s", count * size.tokens)
    return out


def _limit(out: Outcome, size: Size, name: str, work: Work, best: float, unit: str, amount: float) -> None:
    seconds = alternate({name: work}, size.repeats)[name]
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED | GROUPED) as counter:
        work()
    out.add("limits", name, unit, [amount / s for s in seconds])
    out.add("limits utilisation", name, "%", [counter.get_total_flops() / s / 1e10 / best for s in seconds])
    if size.device != "cpu":
        kernels = sum(seconds_by_name(work).values())
        out.add("limits GPU at work", name, "%", [100 * kernels / s for s in seconds])

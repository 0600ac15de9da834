"""How near training steps and searches come to the machine's rate of matrix products."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.decoding import expert_search
from benchmarks.harness import Outcome, Size, Work, alternate
from benchmarks.training import espnet_step, experts_step
from espnet_lole.estimate import UNCOUNTED

SQUARE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product is the reference."""
LARGER = {"cpu": 2, "cuda": 8}
"""How many times as many utterances a large batch has."""
GROUPED = {torch.ops.aten._grouped_mm: lambda left, right, *_, **__: 2 * math.prod(left) * right[-1]}
"""Operations of a grouped product, which torch does not count."""


def limits(size: Size) -> Outcome:
    """Measure the throughput of steps and searches, and their share of the rate of one large product."""
    out = Outcome()
    side = SQUARE[size.device] if size.width > 100 else 64
    left, right = (torch.randn(side, side, device=size.device, dtype=size.precision) for _ in range(2))
    rounds = alternate({"product": lambda: left @ right}, 3 * size.repeats)["product"]
    rates = [2 * side**3 / wall / 1e12 for wall, _ in rounds]
    out.add("limits", f"a product of {side} x {side}", "TFLOP/s", rates)
    for count in (size.train_batch, LARGER[size.device] * size.train_batch):
        larger = replace(size, train_batch=count)
        for name, make in (("experts", experts_step), ("ESPnet + loralib", espnet_step)):
            name = f"step of {count} utterances, {name}"
            _limit(out, size, name, make(larger), max(rates), "s of audio/s", count * size.seconds)
    for count, beam in ((size.decode_batch, size.beam), (4 * size.decode_batch, 1)):
        work = expert_search(replace(size, beam=beam), count)
        name = f"search of {count} utterances, beam {beam}, experts"
        _limit(out, size, name, work, max(rates), "tokens/s", count * size.tokens)
    return out


def _limit(out: Outcome, size: Size, name: str, work: Work, best: float, unit: str, amount: float) -> None:
    seconds = [wall for wall, _ in alternate({name: work}, size.repeats)[name]]
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED | GROUPED) as counter:
        work()
    out.add("limits", name, unit, [amount / s for s in seconds])
    out.add("limits utilisation", name, "%", [counter.get_total_flops() / s / 1e10 / best for s in seconds])
    if size.device == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as record:
            work()
            torch.cuda.synchronize()
        kernels = sum(event.self_device_time_total for event in record.key_averages()) / 1e6
        out.add("limits GPU at work", name, "%", [100 * kernels / s for s in seconds])

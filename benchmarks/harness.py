"""Timing of contenders in turn, their memory, and the records of both."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """How large the contenders and their work are.

    Attributes:
        width: D.
        layers: of the encoder, and of the decoder.
        heads: of attention.
        rank: R.
        train_batch: utterances of a training step.
        decode_batch: utterances decoded together.
        seconds: length of an utterance.
        tokens: of a text.
        beam: of the searches.
        repeats: timed rounds.
        languages: points of the curve of languages; and so on for ``ranks``, ``batches`` and ``lengths``.
        device: where all run.
        precision: of the matrix products, of all contenders.
    """

    width: int = 512
    layers: int = 6
    heads: int = 8
    rank: int = 64
    train_batch: int = 8
    decode_batch: int = 16
    seconds: float = 5.0
    tokens: int = 24
    beam: int = 4
    repeats: int = 7
    languages: tuple[int, ...] = (1, 8, 64, 256)
    ranks: tuple[int, ...] = (8, 32, 64, 128, 256)
    batches: tuple[int, ...] = (1, 4, 16, 64)
    lengths: tuple[float, ...] = (1.0, 5.0, 15.0, 30.0)
    device: str = "cpu"
    precision: torch.dtype = torch.float32


WHISPER_BASE = Size()
WHISPER_MEDIUM = Size(
    width=1024, layers=24, heads=16, train_batch=16, repeats=9, languages=(1, 8, 64), device="cuda", precision=torch.bfloat16
)  # fmt: skip
QUICK = Size(
    width=32, layers=2, heads=2, rank=4, train_batch=4, decode_batch=4, seconds=0.5, tokens=3, beam=2, repeats=2,
    languages=(1, 8), ranks=(2, 4), batches=(1, 2), lengths=(0.5, 1.0),
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """What a contender took: the median of the rounds, the least and the most.

    Attributes:
        benchmark: name of the benchmark.
        contender: who.
        unit: ``s``, ``ms``, ``GB`` or ``%``.
        median: of the rounds.
        low: the least.
        high: the most.
        axis: of a curve: what grows; empty for what is no point of a curve.
        point: of a curve.
    """

    benchmark: str
    contender: str
    unit: str
    median: float
    low: float
    high: float
    axis: str = ""
    point: float = 0.0

    @classmethod
    def of(
        cls, benchmark: str, contender: str, unit: str, values: list[float], axis: str = "", point: float = 0.0
    ) -> Measure:
        """The measure of several rounds."""
        return cls(benchmark, contender, unit, median(values), min(values), max(values), axis, point)


@dataclass(frozen=True)
class Claim:
    """A comparison with a bar.

    Attributes:
        benchmark: what is compared.
        ours: our figure.
        peer: the figure it is compared with.
        unit: of both.
        bar: ``>= 1.3``: the peer takes at least 1.3 times as much; ``<= 1.15``: we take at most 1.15 times as much; empty: none.
    """

    benchmark: str
    ours: float
    peer: float
    unit: str
    bar: str = ""

    @property
    def ratio(self) -> float:
        """Theirs over ours for a bar from below, else ours over theirs."""
        return self.peer / self.ours if self.bar.startswith(">=") else self.ours / self.peer

    @property
    def holds(self) -> str:
        """``yes``, ``no``, or empty without a bar."""
        if not self.bar:
            return ""
        sign, _, bound = self.bar.partition(" ")
        return "yes" if (self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)) else "no"


@dataclass
class Outcome:
    """What a benchmark gives."""

    measures: list[Measure] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    @property
    def curves(self) -> list[Measure]:
        """The measures that are points of curves."""
        return [m for m in self.measures if m.axis]

    def add(
        self, benchmark: str, contender: str, unit: str, values: list[float], axis: str = "", point: float = 0.0
    ) -> None:
        """Add a measure of several rounds."""
        self.measures.append(Measure.of(benchmark, contender, unit, values, axis, point))

    def claim(self, benchmark: str, ours: str, peer: str, bar: str = "") -> None:
        """Compare two contenders of a benchmark."""
        a, b = (
            next(m for m in self.measures if (m.benchmark, m.contender) == (benchmark, name)) for name in (ours, peer)
        )
        self.claims.append(Claim(f"{benchmark}: {ours} / {peer}", a.median, b.median, a.unit, bar))

    def race(self, benchmark: str, contenders: Mapping[str, Work], repeats: int) -> None:
        """Time contenders in turn and add their measures, in milliseconds."""
        for name, seconds in alternate(contenders, repeats).items():
            self.add(benchmark, name, "ms", [1000 * s for s in seconds])


def alternate(contenders: Mapping[str, Work], repeats: int) -> dict[str, list[float]]:
    """Seconds of each round of each contender, taken in turn (A B A B ...) after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def synchronize() -> None:
    """Wait for what a GPU was told to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_memory(make: Callable[..., Work], size: Size, *args: object) -> float:
    """Peak memory in GB while a contender works twice: of a GPU, or of a new process in which it was made."""
    if size.device == "cpu":
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_peak, make, size, *args).result()
    gc.collect()
    before = torch.cuda.memory_allocated()
    work = make(size, *args)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    work()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 1024**3


def _peak(make: Callable[..., Work], *args: object) -> float:
    work = make(*args)
    work()
    work()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024**2  # getrusage would count the parent's

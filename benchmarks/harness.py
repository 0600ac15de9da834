"""Time and memory of contenders measured in turn, and the comparison of ours with an alternative."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """Size of the models and of their work.

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
        languages: points of the curve of languages; ``ranks``, ``batches`` and ``lengths`` of the other curves.
        device: where all run.
        precision: of the matrix products of all contenders.
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


SIZES = {
    "base": Size(),
    "small": Size(width=768, layers=12, heads=12),
    "medium": Size(width=1024, layers=24, heads=16, train_batch=16, repeats=9, languages=(1, 8, 64)),
    "quick": Size(
        width=32, layers=2, heads=2, rank=4, train_batch=4, decode_batch=4, seconds=0.5, tokens=3, beam=2, repeats=2,
        languages=(1, 8), ranks=(2, 4), batches=(1, 2), lengths=(0.5, 1.0),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """The values of a contender, one for each round.

    Attributes:
        benchmark: its name.
        contender: who was measured.
        unit: such as ``ms`` or ``GB``.
        values: of the rounds.
        axis: of a curve: what grows; empty if this is no point of a curve.
        point: on the axis.
    """

    benchmark: str
    contender: str
    unit: str
    values: Sequence[float]
    axis: str = ""
    point: float = 0.0

    def row(self) -> dict[str, object]:
        """Return a row of the table of measures."""
        row = {
            "benchmark": self.benchmark,
            "contender": self.contender,
            "unit": self.unit,
            "median": median(self.values),
        }
        return row | {"low": min(self.values), "high": max(self.values), "axis": self.axis, "point": self.point}


@dataclass(frozen=True)
class Comparison:
    """Two contenders of a benchmark, measured in the same rounds."""

    ours: Measure
    alternative: Measure

    def row(self) -> dict[str, object]:
        """Return a row of the table of comparisons; its ratio is the median of each round's ratio."""
        a, b = self.ours, self.alternative
        ratios = [x / y for x, y in zip(a.values, b.values, strict=True)]
        row = {"benchmark": a.benchmark, "ours": a.contender, "alternative": b.contender, "unit": a.unit}
        row |= {"median": median(a.values), "alternative median": median(b.values)}
        return row | {"ratio": median(ratios), "low": min(ratios), "high": max(ratios)}


@dataclass
class Outcome:
    """The measures and comparisons of a benchmark."""

    measures: list[Measure] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    def add(
        self, benchmark: str, contender: str, unit: str, values: Sequence[float], axis: str = "", point: float = 0.0
    ) -> None:
        """Add the values of a contender."""
        self.measures.append(Measure(benchmark, contender, unit, values, axis, point))

    def race(
        self, benchmark: str, contenders: Mapping[str, Work], repeats: int, axis: str = "", point: float = 0.0
    ) -> None:
        """Time contenders in turn and add their milliseconds."""
        for name, rounds in alternate(contenders, repeats).items():
            self.add(benchmark, name, "ms", [1000 * wall for wall, _ in rounds], axis, point)

    def compare(self, benchmark: str, ours: str, *alternatives: str) -> None:
        """Compare a contender of a benchmark with others of it."""
        measures = {m.contender: m for m in self.measures if m.benchmark == benchmark}
        self.comparisons += [Comparison(measures[ours], measures[name]) for name in alternatives]


def alternate(contenders: Mapping[str, Work], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Measure wall and CPU seconds of each contender in turn (A B A B ...), after a round that is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, work in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds


def peak_memory(make: Callable[..., Work], size: Size, *args: object) -> float:
    """Measure the peak memory, in GB, of two rounds: of a GPU, or of a new process that makes the contender too."""
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
    return int(status["VmHWM"].split()[0]) / 1024**2  # getrusage would include the parent's memory

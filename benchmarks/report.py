"""Files of the benchmarks: every measure, the claims, and the page made of both."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from benchmarks.harness import Claim, Measure, Outcome
from espnet_lole.score.report import write_atomic

MEASURES, RESULTS, PAGE = "measures.csv", "results.csv", "RESULTS.md"
CLAIM_FIELDS = ("benchmark", "ours", "peer", "unit", "ratio", "bar", "holds")
MEASURE_FIELDS = tuple(field.name for field in fields(Measure))


def update(folder: Path, name: str, outcome: Outcome, about: str) -> None:
    """Put a benchmark's outcome in place of its earlier one, and write the page anew."""
    measures = _replace(folder / MEASURES, MEASURE_FIELDS, name, [_formatted(asdict(m)) for m in outcome.measures])
    claims = _replace(folder / RESULTS, CLAIM_FIELDS, name, [_row(claim) for claim in outcome.claims])
    write_atomic(folder / PAGE, page(measures, claims, about))


def _row(claim: Claim) -> dict[str, str]:
    return _formatted({name: getattr(claim, name) for name in CLAIM_FIELDS})


def _formatted(row: dict) -> dict[str, str]:
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items()}


def _replace(path: Path, names: Sequence[str], benchmark: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Replace the rows of a benchmark in a CSV file; returns all rows."""
    kept = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as lines:
            kept = [row for row in csv.DictReader(lines) if not _belongs(row["benchmark"], benchmark)]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept + rows)
    write_atomic(path, out.getvalue())
    return kept + rows


def _belongs(row: str, benchmark: str) -> bool:
    """Is a row named ``train_step``, ``train_step memory`` or ``train_step: experts / ...`` of ``train_step``?"""
    return row == benchmark or row.startswith((f"{benchmark} ", f"{benchmark}:", f"{benchmark},"))


def page(measures: list[dict[str, str]], claims: list[dict[str, str]], about: str) -> str:
    """The page: claims with their bars, every measure with its spread, and the curves."""
    parts = [
        "# Benchmarks\n\nMade by `make bench` (one benchmark: `make bench BENCH=train_step`). " + about + "\n\n",
        "Contenders of a benchmark are timed in turn in one process; a figure is the median of the rounds. A ratio with a bar "
        "from below (`>=`) is how many times as much the peer takes; any other is how many times as much we take.\n\n## Bars\n\n",
        _table(CLAIM_FIELDS, claims),
        "\n## Measures\n\n",
        _table(("benchmark", "contender", "unit", "median", "low", "high"), [m for m in measures if not m["axis"]]),
    ]
    axes = dict.fromkeys(m["axis"] for m in measures if m["axis"])
    for axis in axes:
        rows = [m for m in measures if m["axis"] == axis]
        parts.append(f"\n## Growth with {axis}\n\n{_curve(axis, rows)}")
    return "".join(parts)


def _table(names: Sequence[str], rows: list[dict[str, str]]) -> str:
    head = f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"
    return head + "".join(f"| {' | '.join(row[name] for name in names)} |\n" for row in rows)


def _curve(axis: str, rows: list[dict[str, str]]) -> str:
    """A table of the points, and a bar for each as long as its time is."""
    most = {name: max(float(r["median"]) for r in rows if r["contender"] == name) for name in {r["contender"] for r in rows}}
    lines = [f"| {axis} | contender | ms | |\n|---|---|---|---|\n"]
    for row in sorted(rows, key=lambda r: (r["contender"], float(r["point"]))):
        bar = "█" * max(1, round(30 * float(row["median"]) / most[row["contender"]]))
        lines.append(f"| {row['point']} | {row['contender']} | {row['median']} ({row['low']} to {row['high']}) | {bar} |\n")
    return "".join(lines)


def machine() -> str:
    """The machine in words."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    name = model.partition(":")[2].strip()
    return f"{torch.get_num_threads()} threads of {name}, {platform.system()}, PyTorch {torch.__version__}"

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
from espnet_lole.atomic_io import whole_file, write_whole

MEASURES, RESULTS, PAGE, CURVES = "measures.csv", "results.csv", "RESULTS.md", "curves.png"
CLAIM_FIELDS = ("benchmark", "ours", "peer", "unit", "ratio", "bar", "holds")
MEASURE_FIELDS = tuple(field.name for field in fields(Measure))


def update(folder: Path, name: str, outcome: Outcome, about: str, command: str) -> None:
    """Put a benchmark's outcome in place of its earlier one, and write the page anew."""
    measures = _replace(folder / MEASURES, MEASURE_FIELDS, name, [_formatted(asdict(m)) for m in outcome.measures])
    claims = _replace(folder / RESULTS, CLAIM_FIELDS, name, [_row(claim) for claim in outcome.claims])
    write_whole(folder / PAGE, page(measures, claims, about, command))
    if outcome.curves:
        draw(outcome.curves, folder / CURVES)


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
    write_whole(path, out.getvalue())
    return kept + rows


def _belongs(row: str, benchmark: str) -> bool:
    """Is a row named ``train_step``, ``train_step memory`` or ``train_step: experts / ...`` of ``train_step``?"""
    return row == benchmark or row.startswith((f"{benchmark} ", f"{benchmark}:", f"{benchmark},"))


def page(measures: list[dict[str, str]], claims: list[dict[str, str]], about: str, command: str) -> str:
    """The page: claims with their bars, every measure with its spread, and the curves."""
    parts = [
        f"# Benchmarks\n\nMade by `{command}` (one benchmark: `{command} BENCH=train_step`). {about}\n\n",
        "Contenders of a benchmark are timed in turn in one process; a figure is the median of the rounds. A ratio with a bar "
        "from below (`>=`) is how many times as much the peer takes; any other is how many times as much we take.\n\n## Bars\n\n",
        _table(CLAIM_FIELDS, claims),
        "\n## Measures\n\n",
        _table(("benchmark", "contender", "unit", "median", "low", "high"), [m for m in measures if not m["axis"]]),
    ]
    axes = dict.fromkeys(m["axis"] for m in measures if m["axis"])
    if axes:
        parts.append(f"\n![Growth of the time of a step]({CURVES})\n")
    for axis in axes:
        rows = [m for m in measures if m["axis"] == axis]
        parts.append(f"\n## Growth with {axis}\n\n{_curve(axis, rows)}")
    return "".join(parts)


def _table(names: Sequence[str], rows: list[dict[str, str]]) -> str:
    head = f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"
    return head + "".join(f"| {' | '.join(row[name] for name in names)} |\n" for row in rows)


def _curve(axis: str, rows: list[dict[str, str]]) -> str:
    """A table of the points, and a bar for each as long as its time is."""
    most = {
        name: max(float(r["median"]) for r in rows if r["contender"] == name) for name in {r["contender"] for r in rows}
    }
    lines = [f"| {axis} | contender | ms | |\n|---|---|---|---|\n"]
    for row in sorted(rows, key=lambda r: (r["contender"], float(r["point"]))):
        bar = "█" * max(1, round(30 * float(row["median"]) / most[row["contender"]]))
        lines.append(
            f"| {row['point']} | {row['contender']} | {row['median']} ({row['low']} to {row['high']}) | {bar} |\n"
        )
    return "".join(lines)


def draw(measures: Sequence[Measure], path: Path) -> None:
    """A panel for each axis, both its scales logarithmic: a line at 45 degrees is a time proportional to what grows."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(m.axis for m in measures))
    figure = Figure(figsize=(3.2 * len(axes), 3.2), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for name in dict.fromkeys(m.contender for m in measures):
            points = sorted(
                (m.point, m.median, m.low, m.high) for m in measures if (m.axis, m.contender) == (axis, name)
            )
            x, y, low, high = zip(*points, strict=True)
            panel.fill_between(x, low, high, alpha=0.2)
            panel.plot(x, y, "o-", markersize=4, label=name)
        ticks = sorted({m.point for m in measures if m.axis == axis})
        panel.set(xscale="log", yscale="log", xlabel=axis, xticks=ticks, xticklabels=[f"{point:g}" for point in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("ms")
    panels[0].legend(fontsize=8)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120)


def machine(gpu: bool = False) -> str:
    """The machine in words."""
    if gpu:
        return f"{torch.cuda.get_device_name()}, {platform.system()}, PyTorch {torch.__version__}"
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    name = model.partition(":")[2].strip()
    return f"{torch.get_num_threads()} threads of {name}, {platform.system()}, PyTorch {torch.__version__}"

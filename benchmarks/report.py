"""Files of the benchmarks: tables of measures and comparisons, the pages, and the picture of the curves."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.harness import Measure, Outcome
from espnet_lole.atomic_io import atomic_write, write_text_atomic

MEASURES, COMPARISONS, CURVES = "measures.csv", "comparisons.csv", "curves.png"
MEASURE_FIELDS = ("benchmark", "contender", "unit", "median", "low", "high", "axis", "point")
COMPARISON_FIELDS = ("benchmark", "ours", "alternative", "unit", "median", "alternative median", "ratio", "low", "high")
PAGE, PAGES = "RESULTS.md", {"fast_paths": "fast_paths.md"}
"""The page of all benchmarks, and that of one which has its own."""
Row = Mapping[str, str]


def update(folder: Path, name: str, outcome: Outcome, about: str) -> None:
    """Replace a benchmark's rows in the tables by a new outcome, and write its page."""
    measures = _replace(folder / MEASURES, MEASURE_FIELDS, name, [m.row() for m in outcome.measures])
    comparisons = _replace(folder / COMPARISONS, COMPARISON_FIELDS, name, [c.row() for c in outcome.comparisons])
    page = PAGES.get(name, PAGE)
    rows = ([row for row in table if PAGES.get(_benchmark(row), PAGE) == page] for table in (comparisons, measures))
    write_text_atomic(folder / page, make_page(*rows, about))
    if curves := [m for m in outcome.measures if m.axis]:
        draw(curves, folder / CURVES)


def _replace(path: Path, names: Sequence[str], benchmark: str, rows: Sequence[Mapping[str, object]]) -> list[Row]:
    """Replace the rows of a benchmark in a CSV file, and return all rows."""
    others: list[Row] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as lines:
            others = [row for row in csv.DictReader(lines) if _benchmark(row) != benchmark]
    new = [{k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(others + new)
    write_text_atomic(path, out.getvalue())
    return others + new


def _benchmark(row: Row) -> str:
    """Return the benchmark of a row, which may be of a part of it, such as ``train_step memory``."""
    return row["benchmark"].partition(" ")[0]


def make_page(comparisons: Sequence[Row], measures: Sequence[Row], about: str) -> str:
    """Write the page: comparisons, all measures, and the curves."""
    parts = [
        f"# Benchmarks\n\n{about}\n\nContenders of a benchmark are measured in turn in one process. A ratio is the "
        "median over the rounds of ours / alternative, with its lowest and highest: below 1, this project takes "
        "less.\n\n## Comparisons\n\n",
        _table(COMPARISON_FIELDS, comparisons),
        "\n## Measures\n\nMedian, lowest and highest of the rounds.\n\n",
        _table(MEASURE_FIELDS[:6], [m for m in measures if not m["axis"]]),
    ]
    axes = dict.fromkeys(m["axis"] for m in measures if m["axis"])
    if axes:
        parts.append(f"\n![Growth of the time of a step]({CURVES})\n")
    for axis in axes:
        rows = [m | {axis: m["point"]} for m in measures if m["axis"] == axis]
        parts.append(f"\n## Growth with {axis}\n\n{_table((axis, 'contender', 'unit', 'median', 'low', 'high'), rows)}")
    return "".join(parts)


def _table(names: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(measures: Sequence[Measure], path: Path) -> None:
    """Draw a panel for each axis, with logarithmic scales: proportional growth is a line at 45 degrees."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(m.axis for m in measures))
    figure = Figure(figsize=(3.2 * len(axes), 3.2), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for name in dict.fromkeys(m.contender for m in measures):
            rows = sorted(
                (m.row() for m in measures if (m.axis, m.contender) == (axis, name)), key=lambda row: row["point"]
            )
            x, y, low, high = ([row[key] for row in rows] for key in ("point", "median", "low", "high"))
            panel.fill_between(x, low, high, alpha=0.2)
            panel.plot(x, y, "o-", markersize=4, label=name)
        ticks = sorted({m.point for m in measures if m.axis == axis})
        panel.set(xscale="log", yscale="log", xlabel=axis, xticks=ticks, xticklabels=[f"{point:g}" for point in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("ms")
    panels[0].legend(fontsize=8)
    with atomic_write(path) as made:
        figure.savefig(made, dpi=120)


def describe_machine(device: str) -> str:
    """Describe the machine."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {platform.system()}, PyTorch {torch.__version__}"
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    name = model.partition(":")[2].strip()
    return f"{torch.get_num_threads()} threads of {name}, {platform.system()}, PyTorch {torch.__version__}"

"""The tables at the head of RESULTS.md, over the seeds in results.csv."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

Values = Mapping[tuple[str, str], Sequence[float]]
"""Of a system: (language, metric) -> a figure for each seed."""

PAPER = """|system|scenario|average|
|---|---|---|
|LoRA experts|aware|~7.73|
|LoRA MoLE, 20 of 24 layers shared|aware|7.89, 10.1 % less than standard fine-tuning|
|LoRA MoLE, 20 of 24 layers shared|agnostic|8.68, 14.9 % less than standard fine-tuning|
|LoRA KD student, rank 256|agnostic|8.74|
"""
"""WER of Whisper-medium over 8 languages in arXiv 2506.21555."""


@dataclass(frozen=True)
class Column:
    """A column: its head, where its figures are, how one is written, and which is the best."""

    head: str
    key: tuple[str, str]
    write: Callable[[float], str] = "{:.1f}".format
    best: Callable[[Sequence[float]], float] = min


def collect(rows: Sequence[Mapping[str, str]], system: str, scenario: str) -> dict[tuple[str, str], list[float]]:
    """The figures of a system over all its test sets, one a seed."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if (row["system"], row["scenario"], row["set"]) == (system, scenario, "all"):
            values.setdefault((row["language"], row["metric"]), []).append(float(row["value"]))
    return values


def error_table(
    rows: Sequence[Mapping[str, str]], systems: Sequence[tuple[str, str]], languages: Sequence[str], by_character: Collection[str]
) -> str:
    """Error, LID accuracy and real-time factor; the best of a column within a scenario in bold.

    Args:
        rows: of results.csv.
        systems: (system, scenario) of each line, in order.
        languages: of the columns.
        by_character: those whose error is the CER.
    """
    columns = [Column(f"{lang} (CER)" if lang in by_character else lang, (lang, "error")) for lang in languages]
    columns += [Column("average", ("average", "error")), Column("LID accuracy", ("average", "lid_accuracy"), best=max)]
    columns += [Column("real-time factor", ("average", "rtf"), "{:.3f}".format)]
    values = {system: collect(rows, *system) for system in systems}
    seeds = [str(len(values[system]["average", "error"])) for system in systems]
    cells: dict[tuple[str, str], list[str]] = {}
    for scenario in dict.fromkeys(scenario for _, scenario in systems):
        group = [system for system in systems if system[1] == scenario]
        cells |= zip(group, fill([values[system] for system in group], columns), strict=True)
    lines = [[*system, count, *cells[system]] for system, count in zip(systems, seeds, strict=True)]
    return write_table(["system", "scenario", "seeds", *(column.head for column in columns)], lines)


def cost_table(rows: Sequence[Mapping[str, str]], systems: Sequence[tuple[str, str]]) -> str:
    """What each system costs to train and to run; its memory is that of the scenario that needs more."""
    columns = [
        Column("trained parameters", ("average", "trained_parameters"), write_count),
        Column("steps", ("average", "steps"), "{:.0f}".format),
        Column("minutes to train", ("average", "seconds"), lambda seconds: f"{seconds / 60:.1f}"),
        Column("parameters at inference", ("average", "parameters"), write_count),
        Column("memory at inference, GB", ("average", "memory_gb"), "{:.2f}".format),
    ]
    names = list(dict.fromkeys(system for system, _ in systems))
    values = []
    for name in names:
        own = [collect(rows, name, scenario) for system, scenario in systems if system == name]
        values.append(max(own, key=lambda v: fmean(v.get(("average", "memory_gb"), [0.0]))))
    lines = [[name, *cells] for name, cells in zip(names, fill(values, columns), strict=True)]
    return write_table(["system", *(column.head for column in columns)], lines)


def fill(values: Sequence[Values], columns: Sequence[Column]) -> list[list[str]]:
    """The cells of a line for each system: mean and, of several seeds, deviation; of several systems the best in bold."""
    best = {}
    for column in columns:
        means = [fmean(v[column.key]) for v in values if column.key in v]
        if len(means) > 1:
            best[column.head] = column.best(means)
    return [[_cell(v.get(column.key, []), column, best.get(column.head)) for column in columns] for v in values]


def _cell(figures: Sequence[float], column: Column, best: float | None) -> str:
    if not figures:
        return ""
    text = column.write(fmean(figures))
    if len(figures) > 1:
        text += f" ± {column.write(stdev(figures))}"
    return f"**{text}**" if fmean(figures) == best else text


def write_count(number: float) -> str:
    """A number of parameters: 3.4k, 12.1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def write_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; columns without any figure are left out."""
    kept = [i for i in range(len(head)) if any(line[i] for line in lines)]
    rows = [[row[i] for i in kept] for row in (head, ["---"] * len(head), *lines)]
    return "".join("|" + "|".join(row) + "|\n" for row in rows)

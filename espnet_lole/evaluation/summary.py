"""The tables at the head of RESULTS.md, over all seeds in results.csv."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from espnet_lole.evaluation.normalize import wer_or_cer
from espnet_lole.evaluation.rates import format_percent

Figures = Mapping[tuple[str, str], Sequence[float]]
"""The figures of a system: (language, metric) -> a value for each seed."""

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
    """A column of figures.

    Attributes:
        head: its heading.
        key: language and metric of its figures.
        write: how a figure is written.
        best: which of the systems' means is in bold.
    """

    head: str
    key: tuple[str, str]
    write: Callable[[float], str] = format_percent
    best: Callable[[Sequence[float]], float] = min

    def cells(self, systems: Sequence[Figures]) -> list[str]:
        """Write each system's mean and, over several seeds, standard deviation; the best of several systems in bold."""
        means = [fmean(figures[self.key]) for figures in systems if self.key in figures]
        best = self.best(means) if len(means) > 1 else None
        return [self._cell(figures.get(self.key, ()), best) for figures in systems]

    def _cell(self, values: Sequence[float], best: float | None) -> str:
        if not values:
            return ""
        text = self.write(fmean(values)) + (f" ± {self.write(stdev(values))}" if len(values) > 1 else "")
        return f"**{text}**" if fmean(values) == best else text


def write_count(number: float) -> str:
    """Write a number of parameters: 3.4k, 12.1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


RESOURCES = (
    Column("trained parameters", ("average", "trained_parameters"), write_count),
    Column("steps", ("average", "steps"), "{:.0f}".format),
    Column("minutes to train", ("average", "seconds"), lambda seconds: f"{seconds / 60:.1f}"),
    Column("parameters at inference", ("average", "parameters"), write_count),
    Column("memory at inference, GB", ("average", "memory_gb"), "{:.2f}".format),
)


def error_table(rows: Sequence[Mapping[str, str]], systems: Sequence[tuple[str, str]], languages: Sequence[str]) -> str:
    """Write error rates, LID accuracy and real-time factor; the best of a scenario in bold.

    Args:
        rows: rows of results.csv.
        systems: system and scenario of each line.
        languages: languages of the columns.
    """
    names = {lang: f"{lang} (CER)" if wer_or_cer(lang) == "cer" else lang for lang in languages}
    columns = [Column(name, (lang, "wer_or_cer")) for lang, name in (names | {"average": "average"}).items()]
    columns += [Column("LID accuracy", ("average", "lid_accuracy"), best=max)]
    columns += [Column("real-time factor", ("average", "rtf"), "{:.3f}".format)]
    cells: dict[tuple[str, str], list[str]] = {}
    for scenario in dict.fromkeys(scenario for _, scenario in systems):
        group = [system for system in systems if system[1] == scenario]
        figures = [collect_figures(rows, *system) for system in group]
        seeds = [str(len(values["average", "wer_or_cer"])) for values in figures]
        cells |= zip(group, zip(seeds, *(column.cells(figures) for column in columns), strict=True), strict=True)
    heads = ["system", "scenario", "seeds", *(column.head for column in columns)]
    return write_table(heads, [[*system, *cells[system]] for system in systems])


def resource_table(rows: Sequence[Mapping[str, str]], systems: Sequence[tuple[str, str]]) -> str:
    """Write what each system needs to train and to run; its memory is that of the scenario that needs more."""
    figures: dict[str, Figures] = {}
    for name in dict.fromkeys(name for name, _ in systems):
        scenarios = [collect_figures(rows, *system) for system in systems if system[0] == name]
        figures[name] = max(scenarios, key=lambda values: fmean(values.get(("average", "memory_gb"), [0])))
    lines = zip(figures, *(column.cells(list(figures.values())) for column in RESOURCES), strict=True)
    return write_table(["system", *(column.head for column in RESOURCES)], list(lines))


def collect_figures(rows: Sequence[Mapping[str, str]], system: str, scenario: str) -> Figures:
    """Collect the figures of a system over all its test sets."""
    figures: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if (row["system"], row["scenario"], row["set"]) == (system, scenario, "all"):
            figures.setdefault((row["language"], row["metric"]), []).append(float(row["value"]))
    return figures


def write_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Write a table of Markdown without its empty columns."""
    used = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    return "".join("|" + "|".join(line[i] for i in used) + "|\n" for line in (heads, ["---"] * len(heads), *lines))

"""RESULTS.md, results.csv and result.txt from the scores of decoded test sets."""

from __future__ import annotations

import csv
import io
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean

from espnet_lole.files import write_whole
from espnet_lole.score.normalize import DESCRIPTION
from espnet_lole.score.rates import METRICS, Counts, SetScore

SYSTEMS = ("zero_shot", "experts", "mole", "student", "multilingual", "full", "espnet")
SCENARIOS = ("aware", "agnostic")
CSV_FIELDS = ("system", "scenario", "set", "language", "metric", "value", "seed")
_TABLE_HEAD = "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|\n|---|---|---|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Decoded:
    """A decoded system: one of ``SYSTEMS`` or a variant of it, a scenario, and ``<exp dir>/<inference tag>``."""

    system: str
    scenario: str
    decode_dir: Path

    @classmethod
    def parse(cls, text: str) -> Decoded:
        """Read ``system:scenario:decode_dir``.

        Raises:
            ValueError: a part is missing or unknown.
        """
        parts = text.split(":", 2)
        if len(parts) != 3 or not parts[2]:
            raise ValueError(f"expected --decoded system:scenario:decode_dir, got {text!r}")
        system, scenario, decode_dir = parts
        if not re.fullmatch(rf"({'|'.join(SYSTEMS)})(_[A-Za-z0-9._-]+)?", system):
            raise ValueError(f"expected a system out of {' '.join(SYSTEMS)}, or one with a _suffix, got {system!r}")
        if scenario not in SCENARIOS:
            raise ValueError(f"expected a scenario out of {' '.join(SCENARIOS)}, got {scenario!r}")
        return cls(system, scenario, Path(decode_dir))


@dataclass(frozen=True)
class SystemScore:
    """The scores of a decoded system on its test sets."""

    decoded: Decoded
    sets: list[SetScore]

    @property
    def languages(self) -> list[str]:
        """Languages in the order of the test sets."""
        return list(dict.fromkeys(lang for s in self.sets for lang in s.counts["wer"]))

    def counts(self, metric: str, lang: str) -> Counts:
        """Counts of a language over all test sets."""
        return sum((s.counts[metric][lang] for s in self.sets if lang in s.counts[metric]), Counts())

    def figures(self, metric: str, by_character: Collection[str]) -> dict[str, float]:
        """Language -> percent; ``error`` is the CER of the languages ``by_character``, the WER of the others."""
        return {lang: self.counts(unit_of(metric, lang, by_character), lang).error for lang in self.languages}

    def lid_accuracy(self) -> dict[str, float]:
        """Language -> percent of its utterances whose language was found; empty where it was given."""
        hits, counts = Counter[str](), Counter[str]()
        for s in self.sets:
            for lang, found in s.confusion.items():
                hits[lang] += found[lang]
                counts[lang] += found.total()
        return {lang: 100.0 * hits[lang] / counts[lang] for lang in counts}

    @property
    def excluded(self) -> int:
        """Utterances whose reference is empty after normalisation."""
        return sum(counts.excluded for s in self.sets for counts in s.counts["wer"].values())


def unit_of(metric: str, lang: str, by_character: Collection[str]) -> str:
    """``wer`` or ``cer``: what a metric means in a language."""
    if metric != "error":
        return metric
    return "cer" if lang in by_character else "wer"


def _row(dataset: str, counts: Counts) -> str:
    """A line of ESPnet's table."""
    return f"|{dataset}|{counts.sentences}|{counts.units}|" + "|".join(f"{p:.1f}" for p in counts.percents) + "|\n"


def _rows(score: SetScore, tag: str, metric: str) -> str:
    """The lines of a set: one for each language, which is named where there are several."""
    counts = score.counts[metric]
    name = f"{tag}/{score.name}"
    return "".join(_row(name if len(counts) == 1 else f"{name} ({lang})", c) for lang, c in counts.items())


def write_result_txt(score: SystemScore) -> None:
    """Write ``<decode_dir>/<set>/score_{wer,cer}/result.txt``: the table, then the alignment of each utterance."""
    decode_dir = score.decoded.decode_dir
    for test_set in score.sets:
        for metric in METRICS:
            excluded = sum(counts.excluded for counts in test_set.counts[metric].values())
            text = _TABLE_HEAD + _rows(test_set, decode_dir.name, metric)
            text += f"\nexcluded (empty reference after normalisation): {excluded}\n\n" + "\n".join(test_set.details[metric])
            write_whole(decode_dir / test_set.name / f"score_{metric}" / "result.txt", text)


def summary_table(scores: Sequence[SystemScore], by_character: Collection[str]) -> str:
    """The error and the LID accuracy of each system in percent; of several systems, the best of a column in bold."""
    languages = list(dict.fromkeys(lang for score in scores for lang in score.languages))
    head = [f"{lang} (CER)" if lang in by_character else lang for lang in languages] + ["average"]
    table: list[list[float | None]] = []
    for score in scores:
        figures = score.figures("error", by_character)
        table.append([*(figures[lang] for lang in languages), fmean(figures.values())])
    best: list[float | None] = [min(column) for column in zip(*table, strict=True)]
    if any(score.lid_accuracy() for score in scores):
        head.append("LID accuracy")
        for score, row in zip(scores, table, strict=True):
            row.append(fmean(found.values()) if (found := score.lid_accuracy()) else None)
        best.append(max(row[-1] for row in table if row[-1] is not None))
    lines = ["|system|scenario|" + "|".join(head) + "|", "|---|---|" + "---|" * len(head)]
    for score, row in zip(scores, table, strict=True):
        marks = ["**" if len(scores) > 1 and value == top else "" for value, top in zip(row, best, strict=True)]
        cells = ["" if value is None else f"{mark}{value:.1f}{mark}" for value, mark in zip(row, marks, strict=True)]
        lines.append("|" + "|".join([score.decoded.system, score.decoded.scenario, *cells]) + "|")
    return "\n".join(lines) + "\n"


def _version(package: str) -> str:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_hash() -> str | None:
    """The commit of the checkout this file lies in, with ``-dirty`` after local changes."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environments() -> str:
    """ESPnet's list of what the results were made with."""
    facts = {
        "date": datetime.now().astimezone().strftime("%a %b %d %H:%M:%S %Z %Y"),
        "python version": platform.python_version(),
        "espnet version": _version("espnet"),
        "pytorch version": _version("torch"),
        "espnet_lole version": _version("espnet_lole"),
        "git hash": _git_hash(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
    }
    return "".join(f"- {name}: `{value}`\n" for name, value in facts.items() if value)


def results_md(scores: Sequence[SystemScore], by_character: Collection[str], command: str) -> str:
    """The text of RESULTS.md.

    Args:
        scores: the systems, in the order of the summary.
        by_character: languages whose error is the CER.
        command: the command line that makes the file.

    Returns:
        Markdown: the summary, the environment, then ESPnet's tables for each experiment.
    """
    excluded = ", ".join(f"{s.decoded.system} {s.decoded.scenario} {s.excluded}" for s in scores)
    parts = [
        "# RESULTS\n\nError in percent: WER, or CER where marked (spaces removed). The average is over the languages.\n\n",
        summary_table(scores, by_character),
        f"\nText normalisation of references and hypotheses: {DESCRIPTION}.\n",
        f"Utterances left out, for their reference is empty after it: {excluded}.\n\nMade by `{command}`\n",
        f"\n## Environments\n\n{environments()}",
    ]
    experiments: dict[Path, list[SystemScore]] = {}
    for score in scores:
        experiments.setdefault(score.decoded.decode_dir.parent, []).append(score)
    for exp, group in experiments.items():
        names = "; ".join(f"`{s.decoded.decode_dir.name}` is {s.decoded.system}, {s.decoded.scenario}" for s in group)
        parts.append(f"\n## {exp}\n\n{names}\n")
        for metric in METRICS:
            rows = "".join(_rows(test_set, s.decoded.decode_dir.name, metric) for s in group for test_set in s.sets)
            parts.append(f"\n### {metric.upper()}\n\n{_TABLE_HEAD}{rows}")
    return "".join(parts)


def csv_rows(score: SystemScore, by_character: Collection[str], seed: int) -> list[dict[str, str]]:
    """The rows of a system for results.csv; ``rtf`` of set ``all`` only where every set has one."""
    values: list[tuple[str, str, str, float]] = []
    for s in score.sets:
        for lang in s.counts["wer"]:
            for metric in (*METRICS, "error"):
                values.append((s.name, lang, metric, s.counts[unit_of(metric, lang, by_character)][lang].error))
        if s.rtf is not None:
            values.append((s.name, "average" if len(s.counts["wer"]) > 1 else next(iter(s.counts["wer"])), "rtf", s.rtf))
    for metric in (*METRICS, "error"):
        values.append(("all", "average", metric, fmean(score.figures(metric, by_character).values())))
    if accuracy := score.lid_accuracy():
        values += [("all", lang, "lid_accuracy", value) for lang, value in accuracy.items()]
        values.append(("all", "average", "lid_accuracy", fmean(accuracy.values())))
    rtfs = [s.rtf for s in score.sets if s.rtf is not None]
    if len(rtfs) == len(score.sets):
        values.append(("all", "average", "rtf", fmean(rtfs)))
    key = (score.decoded.system, score.decoded.scenario)
    return [dict(zip(CSV_FIELDS, (*key, *where, f"{value:.6g}", str(seed)), strict=True)) for *where, value in values]


def update_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Put rows in results.csv: those of the same (system, scenario, seed) are replaced, the others kept.

    Raises:
        ValueError: the file has other columns.
    """
    kept: list[dict[str, str]] = []
    new = {(row["system"], row["scenario"], row["seed"]) for row in rows}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            if tuple(reader.fieldnames or ()) != CSV_FIELDS:
                raise ValueError(
                    f"{path}: expected the columns {','.join(CSV_FIELDS)}, got {reader.fieldnames}: move the file away"
                )
            kept = [row for row in reader if (row["system"], row["scenario"], row["seed"]) not in new]
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    write_whole(path, out.getvalue())

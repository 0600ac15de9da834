"""Decoded systems, their scores, and results.csv."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from espnet_lole.atomic_io import write_whole
from espnet_lole.evaluation.costs import INFERENCE, TRAINING, read_costs
from espnet_lole.evaluation.normalize import unit_of
from espnet_lole.evaluation.rates import METRICS, Counts, SetScore

SYSTEMS = ("zero_shot", "experts", "mole", "student", "multilingual", "full", "espnet")
SCENARIOS = ("aware", "agnostic")
CSV_FIELDS = ("system", "scenario", "set", "language", "metric", "value", "seed")


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

    @property
    def finds_language(self) -> bool:
        """Does it name each utterance's language? ESPnet's own model writes text without."""
        return self.scenario == "agnostic" and not self.system.startswith("espnet")


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

    def costs(self) -> dict[str, float]:
        """What training and decoding cost, as far as they left it."""
        found = read_costs(self.decoded.decode_dir.parent) | read_costs(self.decoded.decode_dir)
        return {name: float(found[name]) for name in (*TRAINING, *INFERENCE) if name in found}

    def configs(self) -> list[str]:
        """The configurations of training and decoding, as far as they are known."""
        found = (read_costs(folder).get("config") for folder in (self.decoded.decode_dir.parent, self.decoded.decode_dir))
        return [str(config) for config in found if config]


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
        figures = score.figures(metric, by_character)
        values += [("all", lang, metric, value) for lang, value in figures.items()]
        values.append(("all", "average", metric, fmean(figures.values())))
    if accuracy := score.lid_accuracy():
        values += [("all", lang, "lid_accuracy", value) for lang, value in accuracy.items()]
        values.append(("all", "average", "lid_accuracy", fmean(accuracy.values())))
    rtfs = [s.rtf for s in score.sets if s.rtf is not None]
    if len(rtfs) == len(score.sets):
        values.append(("all", "average", "rtf", fmean(rtfs)))
    values += [("all", "average", name, value) for name, value in score.costs().items()]
    key = (score.decoded.system, score.decoded.scenario)
    return [dict(zip(CSV_FIELDS, (*key, *where, f"{value:.6g}", str(seed)), strict=True)) for *where, value in values]


def update_csv(path: Path, rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Put rows in results.csv: those of the same (system, scenario, seed) are replaced, the others kept.

    Returns:
        All rows of the file.

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
    write_csv(path, [*kept, *rows])
    return [*kept, *rows]


def write_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write rows of results.csv."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, out.getvalue())

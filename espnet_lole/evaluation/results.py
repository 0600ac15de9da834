"""The scores of decoded systems, and results.csv."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import fmean

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.evaluation.normalize import DEFAULT, find_normalizer
from espnet_lole.evaluation.rates import Counts, SetScore, score_set
from espnet_lole.evaluation.resources import INFERENCE, TRAINING, read_resources
from espnet_lole.systems import SCENARIOS, base_system

CSV_FIELDS = ("system", "scenario", "set", "language", "metric", "value", "seed")
Row = dict[str, str]
"""A row of results.csv."""


@dataclass(frozen=True)
class Decoded:
    """A decoded system: its name (of ``SYSTEMS``, or a variant), a scenario, ``<experiment>/<inference tag>``."""

    system: str
    scenario: str
    decode_dir: Path

    @classmethod
    def parse(cls, text: str) -> Decoded:
        """Read ``system:scenario:decode_dir``.

        Raises:
            ValueError: a part is missing or unknown.
        """
        system, scenario, decode_dir, *_ = *text.split(":", 2), "", ""
        if not decode_dir:
            raise ValueError(f"expected --decoded system:scenario:decode_dir, got {text!r}")
        scenarios = SCENARIOS[base_system(system)]
        if scenario not in scenarios:
            raise ValueError(f"expected a scenario of {system} out of {' '.join(scenarios)}, got {scenario!r}")
        return cls(system, scenario, Path(decode_dir))

    @property
    def key(self) -> tuple[str, str]:
        """System and scenario."""
        return self.system, self.scenario

    def score(
        self,
        dumpdir: Path,
        test_sets: Collection[str],
        normalization: str = DEFAULT,
        valid_set: str | None = None,
    ) -> SystemScore:
        """Score the test sets.

        Args:
            dumpdir: holds ``<test_set>/{text,utt2lang}``.
            test_sets: names of the sets.
            normalization: one of ``find_normalizer``.
            valid_set: the one of them, if any, that does not count in averages.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file is not as expected, or there is no such normalisation.
        """
        options = self.scenario == "agnostic", find_normalizer(normalization)
        sets = [score_set(self.decode_dir, dumpdir, name, *options) for name in test_sets]
        return SystemScore(self, sets, [s for s in sets if s.name != valid_set] or sets, normalization)


@dataclass(frozen=True)
class SystemScore:
    """The scores of a decoded system on its test sets.

    Attributes:
        decoded: the system.
        sets: the scores of all sets.
        averaged: those that count in averages: not the validation set, unless it is the only one.
        normalization: how the texts were normalised.
    """

    decoded: Decoded
    sets: list[SetScore]
    averaged: list[SetScore]
    normalization: str = DEFAULT

    @property
    def languages(self) -> list[str]:
        """Languages in the order of the test sets."""
        return list(dict.fromkeys(lang for s in self.averaged for lang in s.languages))

    @property
    def empty(self) -> int:
        """Utterances whose reference is empty after normalisation."""
        return sum(counts.empty for s in self.sets for counts in s.counts["wer"].values())

    def error_rates(self, metric: str) -> dict[str, float]:
        """Return language -> error rate over all test sets, in percent."""
        counts: dict[str, Counts] = {}
        for s in self.averaged:
            for lang, of_set in s.counts[metric].items():
                counts[lang] = counts.get(lang, Counts()) + of_set
        return {lang: total.error_rate for lang, total in counts.items()}

    def lid_accuracy(self) -> dict[str, float]:
        """Return language -> percent of its utterances for which it was predicted; empty in the aware scenario."""
        correct, total = Counter[str](), Counter[str]()
        for s in self.averaged:
            for lang, predicted in s.confusion.items():
                correct[lang] += predicted[lang]
                total[lang] += predicted.total()
        return {lang: 100 * correct[lang] / total[lang] for lang in total}

    def resources(self) -> dict[str, float]:
        """Return the resources that training and decoding recorded."""
        values = read_resources(self.decoded.decode_dir.parent) | read_resources(self.decoded.decode_dir)
        return {name: float(values[name]) for name in (*TRAINING, *INFERENCE) if name in values}

    def configs(self) -> list[str]:
        """Return the configurations of training and decoding, if they are known."""
        folders = (self.decoded.decode_dir.parent, self.decoded.decode_dir)
        return [str(config) for config in (read_resources(folder).get("config") for folder in folders) if config]


def csv_rows(score: SystemScore, seed: int) -> list[Row]:
    """Return a system's rows of results.csv: figures of each set, then of set ``all``."""
    figures = (figure for part in (*map(_set_figures, score.sets), _overall_figures(score)) for figure in part)
    return [
        dict(zip(CSV_FIELDS, (*score.decoded.key, *where, f"{value:.6g}", str(seed)), strict=True))
        for *where, value in figures
    ]


def _set_figures(score: SetScore) -> Iterator[tuple[str, str, str, float]]:
    """Yield set, language, metric and value of a test set."""
    for lang in score.languages:
        yield from ((score.name, lang, metric, counts[lang].error_rate) for metric, counts in score.counts.items())
    if score.rtf is not None:
        yield score.name, score.languages[0] if len(score.languages) == 1 else "average", "rtf", score.rtf


def _overall_figures(score: SystemScore) -> Iterator[tuple[str, str, str, float]]:
    """Yield set, language, metric and value over all test sets; ``rtf`` only if every set has one."""
    by_language = {metric: score.error_rates(metric) for metric in score.averaged[0].counts}
    by_language["lid_accuracy"] = score.lid_accuracy()
    for metric, values in by_language.items():
        yield from (("all", lang, metric, value) for lang, value in values.items())
        if values:
            yield "all", "average", metric, fmean(values.values())
    rtfs = [s.rtf for s in score.averaged if s.rtf is not None]
    if len(rtfs) == len(score.averaged):
        yield "all", "average", "rtf", fmean(rtfs)
    yield from (("all", "average", name, value) for name, value in score.resources().items())


def read_csv(path: Path) -> list[Row]:
    """Read results.csv; empty if the file does not exist.

    Raises:
        ValueError: the file has other columns.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != CSV_FIELDS:
            raise ValueError(
                f"{path}: expected the columns {','.join(CSV_FIELDS)}, got {reader.fieldnames}: move the file away"
            )
        return list(reader)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write results.csv."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, out.getvalue())


def update_csv(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Replace the rows of the same system, scenario and seed in results.csv, and return all its rows.

    Raises:
        ValueError: the file has other columns.
    """
    key = itemgetter("system", "scenario", "seed")
    replaced = set(map(key, rows))
    rows = [*(row for row in read_csv(path) if key(row) not in replaced), *rows]
    write_csv(path, rows)
    return rows

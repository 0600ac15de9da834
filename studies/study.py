"""What the studies share: running a variant of a system through the recipe, its scores, and their spread over seeds."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from espnet_lole.files import write_whole

RECIPE = Path(__file__).resolve().parents[1] / "egs2" / "lole" / "asr1"


@dataclass(frozen=True)
class Study:
    """A study of variants of a system, in ``egs2/lole/asr1/exp/study_<name>``; what is scored is not run again.

    Attributes:
        name: of the study.
        system: ``mole`` or ``student``.
        options: for run.sh, in every run.
    """

    name: str
    system: str
    options: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """Where results.csv, the table and the picture go."""
        return RECIPE / "exp" / f"study_{self.name}"

    def rows(self) -> list[dict[str, str]]:
        """The averages over languages that are scored so far."""
        file = self.folder / "results.csv"
        if not file.is_file():
            return []
        with file.open(newline="") as lines:
            return [row for row in csv.DictReader(lines) if (row["set"], row["language"]) == ("all", "average")]

    def figures(self, variant: str, scenario: str, metric: str) -> list[float]:
        """A variant's average over the languages, one a seed."""
        key = (f"{self.system}_{variant}", scenario, metric)
        return [float(row["value"]) for row in self.rows() if (row["system"], row["scenario"], row["metric"]) == key]

    def run(self, variant: str, seed: int, training_options: str) -> None:
        """Train (on the seed's experts, which are trained if there are none), decode and score a variant.

        Raises:
            SystemExit: the recipe's data are not prepared.
        """
        if not (RECIPE / "exp" / "lole_stats_raw" / "train" / "speech_shape").is_file():
            sys.exit("error: expected prepared data, found none: run make demo, or stages 1 to 10 of the recipe")
        if (f"{self.system}_{variant}", str(seed)) in {(row["system"], row["seed"]) for row in self.rows()}:
            return
        tag = f"study_{self.name}_{variant}_seed{seed}"
        recipe = ["./run.sh", "--seed", str(seed), *self.options]
        if not any(RECIPE.glob(f"exp/lole_train_experts_*_seed{seed}/adapters/*/adapter_config.json")):
            subprocess.run([*recipe, "--stage", "11", "--stop_stage", "11", "--systems", "experts"], cwd=RECIPE, check=True)
        own = [f"--{self.system}_tag", tag, f"--{self.system}_args", training_options, "--systems", self.system]
        subprocess.run([*recipe, *own, "--stage", "11", "--stop_stage", "12"], cwd=RECIPE, check=True)
        sets = sorted(folder.name for folder in (RECIPE / "dump" / "raw").glob("test_*"))
        score = [sys.executable, "-m", "espnet_lole.bin.lole_score", "--expdir", str(self.folder), "--dumpdir", "dump/raw"]
        score += ["--test_sets", " ".join(sets), "--seed", str(seed)]
        for scenario in ("aware", "agnostic"):
            (folder,) = (RECIPE / "exp" / f"lole_{tag}").glob(f"*_{scenario}")
            score += ["--decoded", f"{self.system}_{variant}:{scenario}:{folder}"]
        subprocess.run(score, cwd=RECIPE, check=True)


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation."""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


CURVES = (("aware", "error"), ("agnostic", "error"), ("agnostic", "lid_accuracy"))
"""Scenario and metric of the columns of a table."""


def write_table(study: Study, head: str, variants: dict[str, str], path: Path) -> str:
    """Write error and LID accuracy of the variants, and return the table.

    Args:
        study: the study.
        head: of the first column.
        variants: variant -> what the first column says of it.
        path: of the file.
    """
    columns = " | ".join(f"{metric}, {scenario}" for scenario, metric in CURVES)
    lines = [f"| {head} | {columns} | seeds |", "|---|" + "---|" * (len(CURVES) + 1)]
    for variant, words in variants.items():
        values = [study.figures(variant, *curve) for curve in CURVES]
        lines.append(f"| {words} | " + " | ".join(map(spread, values)) + f" | {len(values[0])} |")
    write_whole(path, "\n".join(lines) + "\n")
    return path.read_text()

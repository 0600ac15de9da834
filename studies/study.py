"""What the studies share: running a variant of a system through the recipe, its scores, and their spread over seeds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.evaluation.results import read_csv

RECIPE = Path(__file__).resolve().parents[1] / "egs2" / "lole" / "asr1"


@dataclass(frozen=True)
class Study:
    """A study of variants of a system, in ``egs2/lole/asr1/exp/study_<name>``; what is scored is not run again.

    Attributes:
        name: of the study.
        system: ``mole``, ``student`` or ``experts``.
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
        """Return the scores so far, over all test sets."""
        return [row for row in read_csv(self.folder / "results.csv") if row["set"] == "all"]

    def figures(self, variant: str, scenario: str, metric: str, language: str = "average") -> list[float]:
        """Return a variant's figure for a language, or for the average over them, per seed."""
        key = (f"{self.system}_{variant}", scenario, metric, language)
        fields = ("system", "scenario", "metric", "language")
        return [float(row["value"]) for row in self.rows() if tuple(row[field] for field in fields) == key]

    def done(self, variant: str, seed: int) -> bool:
        """Return whether a variant is scored."""
        return (f"{self.system}_{variant}", str(seed)) in {(row["system"], row["seed"]) for row in self.rows()}

    def experiment(self, variant: str, seed: int) -> Path:
        """Return the folder of a variant's training."""
        return RECIPE / "exp" / f"lole_study_{self.name}_{variant}_seed{seed}"

    def experts(self, seed: int) -> Path:
        """Return the folder of the experts' training, which is run if it was not.

        Raises:
            SystemExit: the recipe's data are not prepared.
        """
        if not (RECIPE / "dump" / "raw" / "train" / "utt2num_samples").is_file():
            sys.exit("error: the data are not prepared: run make demo, or stages 1 to 4 of the recipe")
        pattern = f"exp/lole_train_experts_*_seed{seed}/adapters/*/adapter_config.json"
        if not any(RECIPE.glob(pattern)):
            subprocess.run(
                [*self.recipe(seed), "--stage", "11", "--stop_stage", "11", "--systems", "experts"],
                cwd=RECIPE,
                check=True,
            )
        return next(RECIPE.glob(pattern)).parents[2]

    def recipe(self, seed: int) -> list[str]:
        """Return the command of the recipe."""
        return ["./run.sh", "--seed", str(seed), *self.options]

    def run(self, variant: str, seed: int, training_options: str) -> None:
        """Train (on the seed's experts, which are trained if there are none), decode and score a variant.

        Raises:
            SystemExit: the recipe's data are not prepared.
        """
        if self.done(variant, seed):
            return
        self.experts(seed)
        tag = self.experiment(variant, seed).name.removeprefix("lole_")
        options = ["--systems", self.system, "--asr_tag", tag, "--asr_args", training_options]
        subprocess.run([*self.recipe(seed), *options, "--stage", "11", "--stop_stage", "12"], cwd=RECIPE, check=True)
        folders = {}
        for scenario in ("aware", "agnostic"):
            (folders[scenario],) = self.experiment(variant, seed).glob(f"*_{scenario}")
        self.score(variant, seed, folders)

    def score(self, variant: str, seed: int, decoded: Mapping[str, Path]) -> None:
        """Score the decodings of a variant, one per scenario."""
        command = [sys.executable, "-m", "espnet_lole.bin.lole_score", "--expdir", str(self.folder)]
        command += ["--dumpdir", "dump/raw"]
        command += ["--test_sets", " ".join(folder.name for folder in test_sets()), "--seed", str(seed)]
        for scenario, folder in decoded.items():
            command += ["--decoded", f"{self.system}_{variant}:{scenario}:{folder}"]
        subprocess.run(command, cwd=RECIPE, check=True)


def test_sets() -> list[Path]:
    """Return the formatted test sets."""
    return sorted((RECIPE / "dump" / "raw").glob("test_*"))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Format the mean and, of several values, the standard deviation."""
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


CURVES = {
    "error, aware": ("aware", "wer_or_cer"),
    "error, agnostic": ("agnostic", "wer_or_cer"),
    "LID accuracy, agnostic": ("agnostic", "lid_accuracy"),
}
"""Columns of a table -> their scenario and metric."""


def write_table(study: Study, head: str, variants: dict[str, str], path: Path) -> str:
    """Write error and LID accuracy of the variants, and return the table.

    Args:
        study: the study.
        head: of the first column.
        variants: variant -> its name in the first column.
        path: of the file.
    """
    lines = []
    for variant, words in variants.items():
        values = [study.figures(variant, *curve) for curve in CURVES.values()]
        lines.append([words, *map(spread, values), str(len(values[0]))])
    return write_lines([head, *CURVES, "seeds"], lines, path)


def write_lines(head: Sequence[str], lines: Sequence[Sequence[str]], path: Path) -> str:
    """Write a table of Markdown, and return it."""
    rows = [head, ["---"] * len(head), *lines]
    write_text_atomic(path, "".join("| " + " | ".join(row) + " |\n" for row in rows))
    return path.read_text()

"""What the studies share: running a variant of a system through the recipe, its scores, and their spread over seeds."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.evaluation.results import read_csv
from espnet_lole.systems import SCENARIOS

RECIPE = Path(__file__).resolve().parents[1] / "egs2" / "lole" / "asr1"
ERRORS = {"error, aware": ("aware", "wer_or_cer"), "error, agnostic": ("agnostic", "wer_or_cer")}
LID = {"LID accuracy, agnostic": ("agnostic", "lid_accuracy")}
COLUMNS = ERRORS | LID
"""Column of a table -> its scenario and metric."""


def get_parser(description: str) -> argparse.ArgumentParser:
    """Return the command line that all studies share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("options", nargs="*", help="options for run.sh, after --")
    return parser


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
        """The folder of results.csv, the tables and the picture."""
        return RECIPE / "exp" / f"study_{self.name}"

    def rows(self) -> list[dict[str, str]]:
        """Return the scores over all test sets so far."""
        return [row for row in read_csv(self.folder / "results.csv") if row["set"] == "all"]

    def figures(self, variant: str, scenario: str, metric: str, language: str = "average") -> list[float]:
        """Return a variant's figure for a language, or the average over them, for each seed."""
        key = (f"{self.system}_{variant}", scenario, metric, language)
        fields = ("system", "scenario", "metric", "language")
        return [float(row["value"]) for row in self.rows() if tuple(row[field] for field in fields) == key]

    def curves(self, variants: Sequence[str], columns: Mapping[str, tuple[str, str]]) -> dict[str, list[list[float]]]:
        """Return each column's figures of the variants."""
        return {head: [self.figures(variant, *column) for variant in variants] for head, column in columns.items()}

    def done(self, variant: str, seed: int) -> bool:
        """Return whether a variant is scored."""
        return (f"{self.system}_{variant}", str(seed)) in {(row["system"], row["seed"]) for row in self.rows()}

    def experiment(self, variant: str, seed: int) -> Path:
        """Return the folder of a variant's training."""
        return RECIPE / "exp" / f"lole_study_{self.name}_{variant}_seed{seed}"

    def recipe(self, seed: int, system: str, *options: str) -> None:
        """Run the recipe for one system."""
        command = ["./run.sh", "--seed", str(seed), "--systems", system, *self.options, *options]
        subprocess.run(command, cwd=RECIPE, check=True)

    def experts(self, seed: int) -> Path:
        """Return the folder of the experts' training, after running it if there is none.

        Raises:
            SystemExit: the recipe's data are not prepared.
        """
        if not (RECIPE / "dump" / "raw" / "train" / "utt2num_samples").is_file():
            sys.exit("error: the data are not prepared: run make demo, or stages 1 to 4 of the recipe")
        pattern = f"exp/lole_train_experts_*_seed{seed}/adapters/*/adapter_config.json"
        if not any(RECIPE.glob(pattern)):
            self.recipe(seed, "experts", "--stage", "11", "--stop_stage", "11")
        return next(RECIPE.glob(pattern)).parents[2]

    def run(self, variant: str, seed: int, training_options: str) -> None:
        """Train a variant on the seed's experts, which are trained if there are none, decode and score it.

        Raises:
            SystemExit: the recipe's data are not prepared.
        """
        if self.done(variant, seed):
            return
        self.experts(seed)
        experiment = self.experiment(variant, seed)
        tag = experiment.name.removeprefix("lole_")
        variant_options = ["--asr_tag", tag, "--asr_args", training_options]
        self.recipe(seed, self.system, *variant_options, "--stage", "11", "--stop_stage", "12")
        decoded = {scenario: next(experiment.glob(f"*_{scenario}")) for scenario in SCENARIOS[self.system]}
        self.score(variant, seed, decoded)

    def score(self, variant: str, seed: int, decoded: Mapping[str, Path]) -> None:
        """Score the decodings of a variant, one for each scenario."""
        command = [sys.executable, "-m", "espnet_lole.bin.lole_score", "--expdir", self.folder, "--seed", str(seed)]
        command += ["--dumpdir", "dump/raw", "--test_sets", " ".join(folder.name for folder in find_test_sets())]
        for scenario, folder in decoded.items():
            command += ["--decoded", f"{self.system}_{variant}:{scenario}:{folder}"]
        subprocess.run(command, cwd=RECIPE, check=True)


def find_test_sets() -> list[Path]:
    """Return the formatted test sets."""
    return sorted((RECIPE / "dump" / "raw").glob("test_*"))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Format the mean and, of several values, the standard deviation."""
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def write_table(study: Study, head: str, variants: Mapping[str, str]) -> str:
    """Write error and LID accuracy of the variants to ``<study>.md``, and return the table.

    Args:
        study: the study.
        head: of the first column.
        variants: variant -> its text in the first column.
    """
    lines = []
    for variant, text in variants.items():
        values = [study.figures(variant, *column) for column in COLUMNS.values()]
        lines.append([text, *map(spread, values), str(len(values[0]))])
    return write_lines([head, *COLUMNS, "seeds"], lines, study.folder / f"{study.name}.md")


def write_lines(head: Sequence[str], lines: Sequence[Sequence[str]], path: Path) -> str:
    """Write a table in Markdown, and return it with its place."""
    table = "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *lines])
    write_text_atomic(path, table)
    return f"{table}in {path}"

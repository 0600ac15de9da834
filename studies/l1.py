"""How many layers to share? MoLE trained with L1 = 1 .. N of the N encoder layers merged, on the same experts.

    python studies/l1.py --l1 1 2 3 4 5 6 --seeds 0 1 2

Runs the recipe's stages 11 and 12 for each L1 and seed (after stages 1 to 10), trains a seed's experts where there are none yet,
scores, and draws. What is already scored is not run again. Writes exp/study_l1/{results.csv,l1.md,l1.png}.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RECIPE = Path(__file__).resolve().parents[1] / "egs2" / "lole" / "asr1"
OUTPUT = Path("exp") / "study_l1"
CURVES = (("aware", "error"), ("agnostic", "error"), ("agnostic", "lid_accuracy"))


def rows() -> list[dict[str, str]]:
    """The averages over languages that are scored so far."""
    file = RECIPE / OUTPUT / "results.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return [row for row in csv.DictReader(lines) if (row["set"], row["language"]) == ("all", "average")]


def run_one(l1: int, seed: int, options: Sequence[str]) -> None:
    """Train, decode and score MoLE with ``l1`` shared layers."""
    tag = f"study_l1_{l1}_seed{seed}"
    recipe = ["./run.sh", "--seed", str(seed), "--mole_tag", tag, "--mole_args", f"--fusion_conf shared_layers={l1}", *options]
    if not any(RECIPE.glob(f"exp/lole_train_experts_*_seed{seed}/adapters/*/adapter_config.json")):
        subprocess.run([*recipe, "--stage", "11", "--stop_stage", "11", "--systems", "experts"], cwd=RECIPE, check=True)
    subprocess.run([*recipe, "--stage", "11", "--stop_stage", "12", "--systems", "mole"], cwd=RECIPE, check=True)
    sets = sorted(folder.name for folder in (RECIPE / "dump" / "raw").glob("test_*"))
    score = [sys.executable, "-m", "espnet_lole.bin.lole_score", "--expdir", str(OUTPUT), "--dumpdir", "dump/raw"]
    score += ["--test_sets", " ".join(sets), "--seed", str(seed)]
    for scenario in ("aware", "agnostic"):
        (folder,) = (RECIPE / "exp" / f"lole_{tag}").glob(f"*_{scenario}")
        score += ["--decoded", f"mole_l{l1}:{scenario}:{folder.relative_to(RECIPE)}"]
    subprocess.run(score, cwd=RECIPE, check=True)


def collect(l1s: Sequence[int], scored: Sequence[dict[str, str]]) -> dict[tuple[str, str], list[list[float]]]:
    """Scenario and metric -> the figures of each L1, one a seed."""
    return {
        (scenario, metric): [
            [float(r["value"]) for r in scored if (r["system"], r["scenario"], r["metric"]) == (f"mole_l{l1}", scenario, metric)]
            for l1 in l1s
        ]
        for scenario, metric in CURVES
    }


def write_table(l1s: Sequence[int], figures: dict[tuple[str, str], list[list[float]]], path: Path) -> None:
    """Mean and standard deviation over the seeds."""
    lines = [
        "| L1 | " + " | ".join(f"{metric}, {scenario}" for scenario, metric in CURVES) + " | seeds |",
        "|---|---|---|---|---|",
    ]
    for i, l1 in enumerate(l1s):
        cells = [f"{fmean(v):.1f}" + (f" ± {stdev(v):.1f}" if len(v) > 1 else "") for v in (figures[c][i] for c in CURVES)]
        lines.append(f"| {l1} | " + " | ".join(cells) + f" | {len(figures[CURVES[0]][i])} |")
    path.write_text("\n".join(lines) + "\n")


def draw(l1s: Sequence[int], figures: dict[tuple[str, str], list[list[float]]], path: Path) -> None:
    """Errors on the left axis, LID accuracy on the right one."""
    figure, left = plt.subplots(figsize=(6, 4), layout="constrained")
    right = left.twinx()
    styles = {CURVES[0]: ("C0", "o-"), CURVES[1]: ("C1", "s-"), CURVES[2]: ("C2", "^--")}
    for (scenario, metric), values in figures.items():
        colour, style = styles[scenario, metric]
        axes = right if metric == "lid_accuracy" else left
        spread = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        name = "LID accuracy (right)" if metric == "lid_accuracy" else f"error, language-{scenario}"
        axes.errorbar(l1s, [fmean(v) for v in values], spread, fmt=style, color=colour, label=name, capsize=3)
    left.set(xlabel="L1: shared encoder layers", ylabel="average error in percent", xticks=list(l1s))
    right.set(ylabel="LID accuracy in percent")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--l1", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("options", nargs="*", help="options for run.sh, after --")
    args = parser.parse_args()
    if not (RECIPE / "exp" / "lole_stats_raw" / "train" / "speech_shape").is_file():
        sys.exit("error: expected prepared data, found none: run make demo, or stages 1 to 10 of the recipe")
    for seed in args.seeds:
        for l1 in args.l1:
            done = {(row["system"], row["seed"]) for row in rows()}
            if (f"mole_l{l1}", str(seed)) not in done:
                run_one(l1, seed, args.options)
    figures = collect(args.l1, rows())
    write_table(args.l1, figures, RECIPE / OUTPUT / "l1.md")
    draw(args.l1, figures, RECIPE / OUTPUT / "l1.png")
    print((RECIPE / OUTPUT / "l1.md").read_text() + f"in {RECIPE / OUTPUT}")


if __name__ == "__main__":
    main()

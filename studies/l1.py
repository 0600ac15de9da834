"""How many layers to share? MoLE trained with L1 = 1 .. N of the N encoder layers merged, on the same experts.

    python studies/l1.py --l1 1 2 3 4 5 6 --seeds 0 1 2

Runs the recipe's stages 11 and 12 for each L1 and seed (after stages 1 to 10), scores, and draws.
Writes exp/study_l1/{results.csv,l1.md,l1.png} in the recipe's folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
from study import CURVES, Study, write_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from espnet_lole.atomic_io import atomic_write


def draw(study: Study, l1s: Sequence[int], path: Path) -> None:
    """Errors on the left axis, LID accuracy on the right one."""
    figure, left = plt.subplots(figsize=(6, 4), layout="constrained")
    right = left.twinx()
    for (head, curve), style in zip(CURVES.items(), ("C0o-", "C1s-", "C2^--"), strict=True):
        values = [study.figures(f"l{l1}", *curve) for l1 in l1s]
        axes, note = (right, " (right)") if head.startswith("LID") else (left, "")
        deviations = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        axes.errorbar(l1s, [fmean(v) for v in values], deviations, fmt=style, label=head + note, capsize=3)
    left.set(xlabel="L1: shared encoder layers", ylabel="average error in percent", xticks=list(l1s))
    right.set(ylabel="LID accuracy in percent")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    with atomic_write(path) as made:
        figure.savefig(made, dpi=120)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--l1", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("options", nargs="*", help="options for run.sh, after --")
    args = parser.parse_args()
    study = Study("l1", "mole", args.options)
    for seed in args.seeds:
        for l1 in args.l1:
            study.run(f"l{l1}", seed, f"--fusion_conf shared_layers={l1}")
    print(write_table(study, "L1", {f"l{l1}": str(l1) for l1 in args.l1}, study.folder / "l1.md"))
    draw(study, args.l1, study.folder / "l1.png")
    print(f"in {study.folder}")


if __name__ == "__main__":
    main()

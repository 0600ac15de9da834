"""Which rank does a student need? Its error and the energy that it preserves; and why the logits alone help little.

    python studies/rank.py --ranks 16 32 64 128 --seeds 0 1 2

Runs the recipe's stages 11 and 12 for each rank and seed (after stages 1 to 10), scores, and draws; trains the students
of studies/kd.py that are distilled from the logits alone, and measures them on the dev set before and after.
Writes exp/study_rank/{results.csv,rank.md,rank.png,logits.md} in the recipe's folder.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
from analysis import compare_outputs, energy_by_layer, gradient_norms, load_system
from kd import VARIANTS
from study import CURVES, RECIPE, Study, spread, write_lines

from espnet_lole.atomic_io import atomic_write
from espnet_lole.config import load_yaml
from espnet_lole.espnet_model import ESPnetStudentModel
from espnet_lole.lole.adapters import Adapter, load_adapter
from espnet_lole.lole.kd import STUDENT, KDConfig, Student
from espnet_lole.lole.system import SystemConfig, build_system

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PARTS = ("none", "layers", "logits")
"""Kinds of distillation whose gradients are compared; ``none`` is the cross-entropy alone."""


def energies(study: Study, ranks: Sequence[int], seeds: Sequence[int]) -> dict[int, list[float]]:
    """Return rank -> percent of the averaged experts' energy that it preserves, the mean over the layers, per seed."""
    preserved: dict[int, list[float]] = {rank: [] for rank in ranks}
    for seed in seeds:
        shares = energy_by_layer(load_system(study.experts(seed))).values()
        for rank in ranks:
            preserved[rank].append(100 * fmean(float(share[min(rank, len(share)) - 1]) for share in shares))
    return preserved


def draw(study: Study, preserved: dict[int, list[float]], path: Path) -> None:
    """Draw errors on the left axis and energy on the right one."""
    figure, left = plt.subplots(figsize=(6, 4), layout="constrained")
    right = left.twinx()
    errors = {head: curve for head, curve in CURVES.items() if curve[1] == "wer_or_cer"}
    curves = {head: [study.figures(f"r{rank}", *curve) for rank in preserved] for head, curve in errors.items()}
    curves["energy preserved at the start (right)"] = list(preserved.values())
    for (name, values), style in zip(curves.items(), ("C0o-", "C1s-", "C2^--"), strict=True):
        deviations = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        axes = right if "right" in name else left
        axes.errorbar(list(preserved), [fmean(v) for v in values], deviations, fmt=style, label=name, capsize=3)
    left.set(xlabel="rank of the student", ylabel="average error in percent", xscale="log")
    left.set_xticks(list(preserved), [str(rank) for rank in preserved])
    left.minorticks_off()
    right.set(ylabel="energy in percent", ylim=(0, 102))
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    with atomic_write(path) as made:
        figure.savefig(made, dpi=120)


def measure(folder: Path, trained: bool) -> dict[str, float]:
    """Measure entropy, agreement and gradient norms of a student on the dev set.

    Args:
        folder: of a student's training with a teacher.
        trained: whether to measure it after its training, or before.
    """
    config = SystemConfig.parse(load_yaml(folder / "config.yaml"))
    system = build_system(replace(config, precision="float32"))
    if trained:
        load_adapter(system.student, STUDENT, Adapter.read(folder / "adapters" / STUDENT))
    students = {kd: Student(system.student, system.teacher, KDConfig(kd=kd)) for kd in PARTS}
    models = {kd: ESPnetStudentModel(student, config.langs).eval() for kd, student in students.items()}
    dev = RECIPE / "dump" / "raw" / "dev"
    return compare_outputs(models["none"], dev) | gradient_norms(models, dev)


def study_logits(study: Study, seeds: Sequence[int]) -> str:
    """Measure the students of the study of distillation that are distilled from the logits, before and after."""
    kd = Study("kd", "student", study.options)
    measured: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for seed in seeds:
        kd.run("logits", seed, VARIANTS["logits"][1])
        for when, values in measured.items():
            values.append(measure(kd.experiment("logits", seed), when == "after"))
    heads = {
        "entropy": "teacher's entropy, nats per token",
        "agreement": "same most likely token, %",
        "none": "gradient of the cross-entropy",
        "layers": "of the layer-wise loss",
        "logits": "of the loss on logits",
    }
    lines = [[when, *(spread([m[key] for m in values], 3) for key in heads)] for when, values in measured.items()]
    return write_lines(["student", *heads.values()], lines, study.folder / "logits.md")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("options", nargs="*", help="options for run.sh, after --")
    args = parser.parse_args()
    os.chdir(RECIPE)  # paths in a training's config.yaml start there
    study = Study("rank", "student", args.options)
    for seed in args.seeds:
        for rank in args.ranks:
            study.run(f"r{rank}", seed, f"--expert_conf rank={rank} --expert_conf alpha={2 * rank}.0")
    preserved = energies(study, args.ranks, args.seeds)
    lines = []
    for rank in args.ranks:
        lines.append(
            [
                str(rank),
                *map(spread, [preserved[rank], *(study.figures(f"r{rank}", *curve) for curve in CURVES.values())]),
            ]
        )
    head = ["rank", "energy preserved, %", *CURVES]
    print(write_lines(head, lines, study.folder / "rank.md"))
    draw(study, preserved, study.folder / "rank.png")
    print(study_logits(study, args.seeds))
    print(f"in {study.folder}")


if __name__ == "__main__":
    main()

"""Which rank does a student need, and why does distilling the outputs alone help little?

    python studies/rank.py --ranks 16 32 64 128 --seeds 0 1 2

Runs the recipe's stages 11 and 12 for each rank and seed (after stages 1 to 10), scores, and draws; trains the
students of studies/kd.py that learn from the outputs alone, and measures them on the dev set before and after. Writes
exp/study_rank/{results.csv,rank.md,rank.png,logits.md} in the recipe's folder.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
from analysis import compare_outputs, gradient_norms
from kd import VARIANTS
from study import CURVES, RECIPE, Study, spread, write_lines

from espnet_lole.atomic_io import atomic_write
from espnet_lole.config import load_yaml
from espnet_lole.espnet_student_model import STUDENT, DistillConfig, ESPnetStudentModel
from espnet_lole.lole.adapters import load_bank
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.kd_init import energy_by_layer, start_student
from espnet_lole.whisper.checkpoint import load_backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PARTS = ("none", "layers", "logits")
"""Distillations whose gradients are told apart; ``none`` is the cross-entropy alone."""


def energies(study: Study, ranks: Sequence[int], seeds: Sequence[int]) -> dict[int, list[float]]:
    """Rank -> percent of the averaged experts' energy that it keeps, the mean over the layers, one a seed."""
    kept: dict[int, list[float]] = {rank: [] for rank in ranks}
    for seed in seeds:
        folder = study.experts(seed)
        model = load_backbone(load_yaml(folder / "config.yaml")["backbone"]).model
        shares = energy_by_layer(load_bank(model, folder / "adapters")).values()
        for rank in ranks:
            kept[rank].append(100 * fmean(float(share[min(rank, len(share)) - 1]) for share in shares))
    return kept


def draw(study: Study, kept: dict[int, list[float]], path: Path) -> None:
    """Errors on the left axis, energy on the right one."""
    figure, left = plt.subplots(figsize=(6, 4), layout="constrained")
    right = left.twinx()
    errors = {head: curve for head, curve in CURVES.items() if curve[1] == "wer_or_cer"}
    curves = {head: [study.figures(f"r{rank}", *curve) for rank in kept] for head, curve in errors.items()}
    curves["energy kept by the start (right)"] = list(kept.values())
    for (name, values), style in zip(curves.items(), ("C0o-", "C1s-", "C2^--"), strict=True):
        deviations = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        axes = right if "right" in name else left
        axes.errorbar(list(kept), [fmean(v) for v in values], deviations, fmt=style, label=name, capsize=3)
    left.set(xlabel="rank of the student", ylabel="average error in percent", xscale="log")
    left.set_xticks(list(kept), [str(rank) for rank in kept])
    left.minorticks_off()
    right.set(ylabel="energy in percent", ylim=(0, 102))
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    with atomic_write(path) as made:
        figure.savefig(made, dpi=120)


def measure(experts: Path, student: Path | None, config: dict) -> dict[str, float]:
    """Entropy, agreement and gradient norms of a student on the dev set.

    Args:
        experts: folder of the teachers' adapters.
        student: the student's adapter; None: its start, the average of the experts.
        config: of the student's training.
    """
    backbone = load_backbone(config["backbone"], config["window"])
    teacher = load_bank(backbone.model, experts)
    if student is None:
        bank = ExpertBank(backbone.model, [STUDENT], ExpertConfig(**config["expert_conf"]))
        start_student(bank, teacher)
    else:
        bank = load_bank(backbone.model, student.parent, [student.name])
    tokens, dev = WhisperTokens(backbone.model.config.vocab_size), RECIPE / "dump" / "raw" / "dev"
    models = {
        kd: ESPnetStudentModel(backbone, teacher.languages, teacher, bank, tokens, DistillConfig(kd=kd), 1).eval()
        for kd in PARTS
    }
    return compare_outputs(models["none"], dev) | gradient_norms(models, dev)


def study_logits(study: Study, seeds: Sequence[int]) -> str:
    """Measure the students of the study of distillation that learn from the outputs alone, before and after."""
    kd = Study("kd", "student", study.options)
    measured: dict[str, list[dict[str, float]]] = {"start": [], "after": []}
    for seed in seeds:
        kd.run("logits", seed, VARIANTS["logits"][1])
        adapters, trained = study.experts(seed) / "adapters", kd.experiment("logits", seed)
        config = load_yaml(trained / "config.yaml")
        measured["start"].append(measure(adapters, None, config))
        measured["after"].append(measure(adapters, trained / "adapters" / STUDENT, config))
    heads = {
        "entropy": "teacher's entropy, nats a token",
        "agreement": "tokens likeliest for both, %",
        "none": "gradient of the cross-entropy",
        "layers": "of the layers' loss",
        "logits": "of the outputs' loss",
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
    kept = energies(study, args.ranks, args.seeds)
    lines = []
    for rank in args.ranks:
        lines.append(
            [str(rank), *map(spread, [kept[rank], *(study.figures(f"r{rank}", *curve) for curve in CURVES.values())])]
        )
    head = ["rank", "energy kept, %", *CURVES]
    print(write_lines(head, lines, study.folder / "rank.md"))
    draw(study, kept, study.folder / "rank.png")
    print(study_logits(study, args.seeds))
    print(f"in {study.folder}")


if __name__ == "__main__":
    main()

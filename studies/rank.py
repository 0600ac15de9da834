"""Which rank does a student need, and why does distilling the outputs alone help little?

    python studies/rank.py --ranks 16 32 64 128 --seeds 0 1 2

Runs the recipe's stages 11 and 12 for each rank and seed, scores, and draws; trains the students of studies/kd.py that
learn from the outputs alone, and measures them on the dev set before and after their training.
Writes exp/study_rank/{results.csv,rank.md,rank.png,logits.md} in the recipe's folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from analysis import compare_outputs, energy_by_layer, gradient_norms, load_system
from figures import draw_curves, save
from kd import VARIANTS
from study import COLUMNS, ERRORS, RECIPE, Study, get_parser, spread, write_lines

from espnet_lole.config import load_yaml
from espnet_lole.espnet_model import ESPnetStudentModel
from espnet_lole.lole.adapters import Adapter, load_adapter
from espnet_lole.lole.kd import STUDENT, KDConfig, LoRAKD
from espnet_lole.lole.system import SystemConfig, build_system

KINDS = ("none", "layers", "logits")
"""Distillations whose gradients are compared; ``none`` is the cross-entropy alone."""


def measure_energy(study: Study, ranks: Sequence[int], seeds: Sequence[int]) -> list[list[float]]:
    """Compute the mean percentage of the averaged experts' energy that each rank preserves, for each seed."""
    shares = [energy_by_layer(load_system(study.experts(seed))).values() for seed in seeds]
    return [[100 * fmean(float(s[min(rank, len(s)) - 1]) for s in layers) for layers in shares] for rank in ranks]


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
    students = {kd: LoRAKD(system.student, system.teacher, KDConfig(kd=kd)) for kd in KINDS}
    models = {kd: ESPnetStudentModel(student, config.langs).eval() for kd, student in students.items()}
    dev = RECIPE / "dump" / "raw" / "dev"
    return compare_outputs(models["none"], dev) | gradient_norms(models, dev)


def study_logits(study: Study, seeds: Sequence[int]) -> str:
    """Measure the students of the study of distillation that learn from the outputs alone, before and after."""
    kd = Study("kd", "student", study.options)
    for seed in seeds:
        kd.run("logits", seed, VARIANTS["logits"][1])
    heads = {
        "entropy": "teacher's entropy, nats per token",
        "agreement": "same most likely token, %",
        "none": "gradient of the cross-entropy",
        "layers": "of the layer-wise loss",
        "logits": "of the loss on logits",
    }
    lines = []
    for name, trained in (("before", False), ("after", True)):
        measured = [measure(kd.experiment("logits", seed), trained) for seed in seeds]
        lines.append([name, *(spread([m[key] for m in measured], 3) for key in heads)])
    return write_lines(["student", *heads.values()], lines, study.folder / "logits.md")


def main() -> None:
    """Entry point."""
    parser = get_parser(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 32, 64, 128])
    args = parser.parse_args()
    os.chdir(RECIPE)  # paths in dump/raw start there
    study = Study("rank", "student", args.options)
    for seed in args.seeds:
        for rank in args.ranks:
            study.run(f"r{rank}", seed, f"--expert_conf rank={rank} --expert_conf alpha={2 * rank}.0")
    energy = measure_energy(study, args.ranks, args.seeds)
    lines = []
    for rank, values in zip(args.ranks, energy, strict=True):
        figures = [study.figures(f"r{rank}", *column) for column in COLUMNS.values()]
        lines.append([str(rank), *map(spread, [values, *figures])])
    print(write_lines(["rank", "energy preserved, %", *COLUMNS], lines, study.folder / "rank.md"))
    errors = study.curves([f"r{rank}" for rank in args.ranks], ERRORS)
    labels = "rank of the student", "average error in percent", "energy in percent"
    figure = draw_curves(args.ranks, errors, {"energy preserved by the start": energy}, labels)
    figure.axes[0].set_xscale("log")
    figure.axes[0].set_xticks(args.ranks, map(str, args.ranks))
    figure.axes[0].minorticks_off()
    save(figure, study.folder / "rank.png")
    print(study_logits(study, args.seeds))


if __name__ == "__main__":
    main()

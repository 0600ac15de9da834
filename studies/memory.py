"""How small can an expert be? Error against bytes per language of the recipe's experts, compressed in three ways.

    python studies/memory.py --seeds 0 1 2

Each expert is cut to a lower rank (svd), put on a basis shared by all languages (basis), or stored in 8 bits (int8,
also after svd); nothing is trained again. Decodes with the language given and scores, for each seed's experts, which
are trained if there are none. Writes exp/study_memory/{results.csv,memory.md,memory.png} in the recipe's folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
import torch
from compress import BYTES, METHODS
from study import RECIPE, Study, spread, test_sets, write_lines

from espnet_lole.config import load_yaml
from espnet_lole.lole.adapters import load_bank, save_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.whisper.checkpoint import load_backbone

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FAMILIES = {"svd": "lower rank (SVD)", "basis": "shared basis", "int8": "8 bits", "svd_int8": "lower rank, then 8 bits"}
Variant = tuple[str, int]
"""What is done, ``_`` between several steps, and the rank."""


def compress(config: dict, experts: Path, family: str, rank: int, folder: Path) -> float:
    """Write the compressed experts as plain adapters, and return the kB a language that they stand for."""
    bank = load_bank(load_backbone(config["backbone"]).model, experts)
    model = load_backbone(config["backbone"]).model
    targets = bank.config.targets
    made = ExpertBank(model, bank.languages, ExpertConfig(rank, alpha=float(rank), targets=targets))  # scaled by 1
    size = 0.0
    with torch.no_grad():
        for name, layer in bank.layers.items():
            a, b = layer.lora_A, layer.scale * layer.lora_B
            for step in family.split("_"):
                a, b = METHODS[step](a, b, rank)
                last = BYTES[step](len(bank.languages), rank, layer.in_features, layer.out_features)
            made.layers[name].lora_A.copy_(a)
            made.layers[name].lora_B.copy_(b)
            size += last
    for lang in bank.languages:
        save_expert(made, lang, folder / lang, config["backbone"])
    return size / 1000


def evaluate(study: Study, seed: int, name: str, adapters: Path, inference_config: str) -> None:
    """Decode with the language given, and score."""
    experiment = study.experts(seed)
    command = [sys.executable, "-m", "espnet_lole.bin.lole_inference", "--experts", str(adapters)]
    command += ["--asr_train_config", str(experiment / "config.yaml"), "--config", inference_config]
    command += ["--output_dir", str(adapters.parent / "decode"), "--test_dirs", *map(str, test_sets())]
    subprocess.run(command, check=True)
    study.score(name, seed, {"aware": adapters.parent / "decode_aware"})


def draw(study: Study, sizes: dict[Variant, float], whole: tuple[float, list[float]], path: Path) -> None:
    """Error against kB a language, a line a way to compress."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for family, words in FAMILIES.items():
        points = sorted(
            (size, fmean(study.figures(f"{f}{r}", "aware", "wer_or_cer")))
            for (f, r), size in sizes.items()
            if f == family
        )
        axes.plot(*zip(*points, strict=True), "o-", label=words)
    axes.plot(whole[0], fmean(whole[1]), "k*", markersize=11, label="as trained")
    axes.set(xlabel="kB for each language", ylabel="average error in percent, language given", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def choose(rank: int, ranks: Sequence[int], bases: Sequence[int]) -> list[Variant]:
    """The variants for experts of a rank."""
    lower = [r for r in ranks if r < rank]
    return [
        *(("svd", r) for r in lower),
        *(("basis", r) for r in bases),
        ("int8", rank),
        *(("svd_int8", r) for r in lower),
    ]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="after svd")
    parser.add_argument("--bases", type=int, nargs="+", default=[8, 16, 32, 64], help="directions of the shared basis")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--inference_config", default="conf/mini/decode.yaml")
    parser.add_argument("options", nargs="*", help="options for run.sh, after --")
    args = parser.parse_args()
    os.chdir(RECIPE)  # paths in a training's config.yaml start there
    study, sizes = Study("memory", "experts", args.options), {}
    for seed in args.seeds:
        experts = study.experts(seed)
        config = load_yaml(experts / "config.yaml")
        rank = config["expert_conf"]["rank"]
        for family, small in [("svd", rank), *choose(rank, args.ranks, args.bases)]:
            work = study.folder / f"{family}{small}_seed{seed}"
            sizes[family, small] = compress(config, experts / "adapters", family, small, work / "adapters")
            if not study.done(f"{family}{small}", seed):
                evaluate(study, seed, f"{family}{small}", work / "adapters", args.inference_config)
    whole = sizes.pop(("svd", rank)), study.figures(f"svd{rank}", "aware", "wer_or_cer")
    lines = [["as trained", str(rank), f"{whole[0]:.0f}", spread(whole[1])]]
    for (family, small), size in sizes.items():
        figures = study.figures(f"{family}{small}", "aware", "wer_or_cer")
        lines.append([FAMILIES[family], str(small), f"{size:.0f}", spread(figures)])
    print(write_lines(["experts", "rank", "kB a language", "error, aware"], lines, study.folder / "memory.md"))
    draw(study, sizes, whole, study.folder / "memory.png")
    print(f"in {study.folder}")


if __name__ == "__main__":
    main()

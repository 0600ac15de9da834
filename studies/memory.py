"""How small can an expert be? Error against bytes per language of the recipe's experts, compressed in three forms.

    python studies/memory.py --seeds 0 1 2

Each expert is truncated to a lower rank (svd), put on a basis shared by all languages (basis), or stored in 8 bits
(int8, also after svd); nothing is trained again. Decodes with the language given and scores, for each seed's experts,
which are trained if there are none. Writes exp/study_memory/{results.csv,memory.md,memory.png} in the recipe's folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
import torch
from analysis import load_system, trained_config
from compress import BYTES, METHODS
from study import RECIPE, Study, spread, test_sets, write_lines

from espnet_lole.lole.adapters import save_adapter
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts
from espnet_lole.whisper.checkpoint import load_whisper

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FAMILIES = {"svd": "lower rank (SVD)", "basis": "shared basis", "int8": "8 bits", "svd_int8": "lower rank, then 8 bits"}
Variant = tuple[str, int]
"""Key of ``FAMILIES``, steps separated by ``_``, and the rank."""


@torch.no_grad()
def compress(trained: Path, family: str, rank: int, folder: Path) -> float:
    """Write compressed experts as a training's folder of plain adapters.

    Args:
        trained: folder of the experts' training.
        family: of ``FAMILIES``.
        rank: of the compressed experts.
        folder: gets ``config.yaml`` and ``adapters``.

    Returns:
        The kB per language of the compressed form.
    """
    config, experts = trained_config(trained), load_system(trained)
    whisper = load_whisper(config.backbone, experts.whisper.pad_to)
    made = LoRAExperts(
        whisper, experts.languages, ExpertConfig(rank, alpha=float(rank), targets=experts.config.targets)
    )
    size = 0.0
    for name, layer in experts.layers.items():
        a = torch.stack(list(layer.lora_A.values()))  # (E, R, D_in)
        b = layer.scale * torch.stack(list(layer.lora_B.values()))  # (E, D_out, R)
        for step in family.split("_"):
            a, b = METHODS[step](a, b, rank)
        size += BYTES[step](len(a), rank, layer.base.in_features, layer.base.out_features)
        for i, lang in enumerate(experts.languages):
            made.layers[name].lora_A[lang].copy_(a[i])
            made.layers[name].lora_B[lang].copy_(b[i])
    for lang in experts.languages:
        save_adapter(made, lang, folder / "adapters" / lang, config.backbone)
    shutil.copy(trained / "config.yaml", folder)
    return size / 1000


def evaluate(study: Study, seed: int, variant: str, folder: Path, inference_config: str) -> None:
    """Decode with the language given, and score."""
    command = [sys.executable, "-m", "espnet_lole.bin.lole_inference", "--model", str(folder), "--scenarios", "aware"]
    command += ["--config", inference_config, "--output_dir", str(folder / "decode")]
    command += ["--test_dirs", *map(str, test_sets())]
    subprocess.run(command, cwd=RECIPE, check=True)
    study.score(variant, seed, {"aware": folder / "decode_aware"})


def draw(study: Study, sizes: dict[Variant, float], whole: tuple[float, list[float]], path: Path) -> None:
    """Draw error against kB per language, one line for each kind of compression."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for family, words in FAMILIES.items():
        points = sorted(
            (size, fmean(study.figures(f"{f}{r}", "aware", "wer_or_cer")))
            for (f, r), size in sizes.items()
            if f == family
        )
        axes.plot(*zip(*points, strict=True), "o-", label=words)
    axes.plot(whole[0], fmean(whole[1]), "k*", markersize=11, label="as trained")
    axes.set(xlabel="kB per language", ylabel="average error in percent, language given", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def choose(rank: int, ranks: Sequence[int], bases: Sequence[int]) -> list[Variant]:
    """Return the variants for experts of a rank."""
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
    study, sizes = Study("memory", "experts", args.options), {}
    for seed in args.seeds:
        trained = study.experts(seed)
        rank = load_system(trained).config.rank
        for family, small in [("svd", rank), *choose(rank, args.ranks, args.bases)]:
            variant = f"{family}{small}"
            folder = study.folder / f"{variant}_seed{seed}"
            sizes[family, small] = compress(trained, family, small, folder)
            if not study.done(variant, seed):
                evaluate(study, seed, variant, folder, args.inference_config)
    whole = sizes.pop(("svd", rank)), study.figures(f"svd{rank}", "aware", "wer_or_cer")
    lines = [["as trained", str(rank), f"{whole[0]:.0f}", spread(whole[1])]]
    for (family, small), size in sizes.items():
        figures = study.figures(f"{family}{small}", "aware", "wer_or_cer")
        lines.append([FAMILIES[family], str(small), f"{size:.0f}", spread(figures)])
    print(write_lines(["experts", "rank", "kB per language", "error, aware"], lines, study.folder / "memory.md"))
    draw(study, sizes, whole, study.folder / "memory.png")
    print(f"in {study.folder}")


if __name__ == "__main__":
    main()

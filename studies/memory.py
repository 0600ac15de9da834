"""How small can an expert be? Error against bytes per language of the recipe's experts, compressed in three forms.

    python studies/memory.py --seeds 0 1 2

Each expert is truncated to a lower rank (svd), put on a basis shared by all languages (basis), or stored in 8 bits
(int8, also after svd); nothing is trained again. Decodes with the language given and scores, for each seed's experts,
which are trained if there are none. Writes exp/study_memory/{results.csv,memory.md,memory.png} in the recipe's folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from analysis import load_system, trained_config
from compress import BYTES, METHODS
from figures import save
from matplotlib.figure import Figure
from study import RECIPE, Study, find_test_sets, get_parser, spread, write_lines

from espnet_lole.lole.adapters import save_adapter
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts
from espnet_lole.whisper.checkpoint import load_whisper

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
    command = [sys.executable, "-m", "espnet_lole.bin.lole_inference", "--model", folder, "--config", inference_config]
    command += ["--output_dir", folder / "decode", "--test_dirs", *find_test_sets()]
    subprocess.run(command, cwd=RECIPE, check=True)
    study.score(variant, seed, {"aware": folder / "decode_aware"})


def draw(errors: Mapping[Variant, float], sizes: Mapping[Variant, float], trained: Variant) -> Figure:
    """Draw error against kB per language, one line for each kind of compression."""
    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    for family, label in FAMILIES.items():
        points = sorted((sizes[v], errors[v]) for v in sizes if v[0] == family and v != trained)
        axes.plot(*zip(*points, strict=True), "o-", label=label)
    axes.plot(sizes[trained], errors[trained], "k*", markersize=11, label="as trained")
    axes.set(xlabel="kB per language", ylabel="average error in percent, language given", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def choose(rank: int, ranks: Sequence[int], bases: Sequence[int]) -> list[Variant]:
    """Return the variants for experts of a rank; the first one, truncated to this rank, changes nothing."""
    lower = [r for r in ranks if r < rank]
    variants = [("svd", r) for r in [rank, *lower]] + [("basis", r) for r in bases]
    return [*variants, ("int8", rank), *(("svd_int8", r) for r in lower)]


def main() -> None:
    """Entry point."""
    parser = get_parser(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="after svd")
    parser.add_argument("--bases", type=int, nargs="+", default=[8, 16, 32, 64], help="directions of the shared basis")
    parser.add_argument("--inference_config", default="conf/mini/decode.yaml")
    args = parser.parse_args()
    study, sizes = Study("memory", "experts", args.options), {}
    for seed in args.seeds:
        trained = study.experts(seed)
        rank = load_system(trained).config.rank
        for family, small in choose(rank, args.ranks, args.bases):
            variant = f"{family}{small}"
            folder = study.folder / f"{variant}_seed{seed}"
            sizes[family, small] = compress(trained, family, small, folder)
            if not study.done(variant, seed):
                evaluate(study, seed, variant, folder, args.inference_config)
    names, errors, lines = FAMILIES | {f"svd{rank}": "as trained"}, {}, []
    for (family, small), size in sizes.items():
        values = study.figures(f"{family}{small}", "aware", "wer_or_cer")
        errors[family, small] = fmean(values)
        name = names.get(f"{family}{small}") or names[family]
        lines.append([name, str(small), f"{size:.0f}", spread(values)])
    print(write_lines(["experts", "rank", "kB per language", "error, aware"], lines, study.folder / "memory.md"))
    save(draw(errors, sizes, ("svd", rank)), study.folder / "memory.png")


if __name__ == "__main__":
    main()

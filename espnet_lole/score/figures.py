"""Pictures of a trained system: LID confusion, fusion weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import TwoSlopeNorm

from espnet_lole.files import whole_file


def draw_confusion(confusion: Mapping[str, Counter[str]], path: Path) -> None:
    """Draw how often each language was found for each true one.

    Args:
        confusion: true language -> found language -> utterances.
        path: of the picture, whose suffix is its format.
    """
    true = sorted(confusion)
    found = sorted({lang for row in confusion.values() for lang in row} | set(true))
    counts = np.array([[confusion[t][f] for f in found] for t in true])
    shares = counts / counts.sum(1, keepdims=True)
    figure, axes = plt.subplots(figsize=(1.5 + 0.6 * len(found), 1.2 + 0.55 * len(true)), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        if counts[i, j]:
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    axes.set_xticks(range(len(found)), found)
    axes.set_yticks(range(len(true)), true)
    axes.set(xlabel="language found", ylabel="language spoken", title="Utterances by language")
    _save(figure, path)


def draw_fusion(weights: NDArray[np.floating], groups: Sequence[str], languages: Sequence[str], path: Path) -> None:
    """Draw the weight of each expert in each group of merged linears.

    Args:
        weights: shape (G, P, E): group, factor, expert.
        groups: names of the groups, in the model's order.
        languages: of the experts.
        path: of the picture, whose suffix is its format.
    """
    factors = ["of A", "of B"] if weights.shape[1] == 2 else ["of B A"]
    height = 1.4 + 0.2 * len(groups)
    figure, panels = plt.subplots(
        1, len(factors), figsize=(3 + 3 * len(factors), height), layout="constrained", sharey=True, squeeze=False
    )
    uniform = 1 / len(languages)
    scale = TwoSlopeNorm(uniform, min(weights.min(), uniform - 1e-3), max(weights.max(), uniform + 1e-3))
    names = [group.removeprefix("model.encoder.layers.").replace(".self_attn", "") for group in groups]
    for i, (axes, factor) in enumerate(zip(panels[0], factors, strict=True)):
        image = axes.imshow(weights[:, i], cmap="RdBu_r", norm=scale, aspect="auto")
        axes.set_xticks(range(len(languages)), languages)
        axes.set_yticks(range(len(groups)), names, fontsize=7)
        axes.set(title=f"weight {factor}", xlabel="expert")
    panels[0, 0].set_ylabel("encoder layer (from 0) and linear")
    figure.colorbar(image, ax=panels, label=f"white: uniform, {uniform:.3f}")
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    with whole_file(path) as made:
        figure.savefig(made, dpi=120)
    plt.close(figure)

"""Pictures of trained systems."""

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

from espnet_lole.atomic_io import whole_file

MARKERS = "os^Dv*PX<>"


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


def draw_energy(shares: Mapping[str, NDArray[np.floating]], ranks: Mapping[str, int], path: Path) -> None:
    """Draw how much of the averaged experts' energy each rank keeps, a line a layer.

    Args:
        shares: ``enc1``, ..., ``dec1``, ... -> share of the energy at rank 1 .. k, shape (k,).
        ranks: what stands at a rank -> the rank, drawn as a vertical line.
        path: of the picture, whose suffix is its format.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for axes, part in zip(panels, ("enc", "dec"), strict=True):
        layers = {name: share for name, share in shares.items() if name.startswith(part)}
        for colour, (name, share) in zip(plt.cm.viridis(np.linspace(0, 0.9, len(layers))), layers.items(), strict=True):
            axes.plot(range(1, len(share) + 1), 100 * share, color=colour, label=name.removeprefix(part))
        for what, rank in ranks.items():
            axes.axvline(rank, color="grey", linestyle=":")
            axes.annotate(what, (rank, 3), xytext=(3, 0), textcoords="offset points", rotation=90, fontsize=8)
        axes.set(xscale="log", xlabel="rank", ylim=(0, 102), title=f"{part}oder")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.3)
        axes.legend(title="layer", fontsize=7, ncols=1 + len(layers) // 9, loc="lower right")
    panels[0].set_ylabel("energy kept, percent")
    _save(figure, path)


def draw_cosines(cosines: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw how near each system's hidden states are to those of the experts.

    Args:
        cosines: system -> ``enc1``, ..., ``dec1``, ... -> mean cosine.
        path: of the picture, whose suffix is its format.
    """
    names = list(next(iter(cosines.values())))
    figure, axes = plt.subplots(figsize=(2.5 + 0.45 * len(names), 3.8), layout="constrained")
    for marker, (system, values) in zip(MARKERS, cosines.items(), strict=False):
        axes.plot(names, [values[name] for name in names], marker=marker, label=system)
    axes.set(xlabel="layer", ylabel="mean cosine to the expert's states")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def draw_states(points: Mapping[str, NDArray[np.floating]], langs: Sequence[str], notes: Mapping[str, str], path: Path) -> None:
    """Draw utterances as points, one panel a system, one colour and marker a language.

    Args:
        points: system -> shape (N, 2).
        langs: language of each of the N utterances.
        notes: system -> words below its name.
        path: of the picture, whose suffix is its format.
    """
    figure, panels = plt.subplots(1, len(points), figsize=(1 + 3.5 * len(points), 3.8), layout="constrained", squeeze=False)
    of = np.array(langs)
    for axes, (system, places) in zip(panels[0], points.items(), strict=True):
        for i, lang in enumerate(sorted(set(langs))):
            x, y = places[of == lang].T
            axes.scatter(x, y, s=14, alpha=0.7, color=plt.cm.tab10(i % 10), marker=MARKERS[i // 10], label=lang)
        axes.set(title=f"{system}\n{notes[system]}", xticks=[], yticks=[])
        axes.title.set_fontsize(9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    with whole_file(path) as made:
        figure.savefig(made, dpi=120)
    plt.close(figure)

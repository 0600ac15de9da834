"""Figures of trained systems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from espnet_lole.atomic_io import atomic_write

MARKERS = "os^Dv*PX<>"
Array = NDArray[np.floating]


def save(figure: Figure, path: Path) -> None:
    """Save a figure in the format of the path's suffix."""
    with atomic_write(path) as made:
        figure.savefig(made, dpi=120)


def draw_confusion(confusion: Mapping[str, Counter[str]]) -> Figure:
    """Draw how often each language was predicted for each true one.

    Args:
        confusion: true language -> predicted language -> utterances.
    """
    true = sorted(confusion)
    predicted = sorted(set(true).union(*confusion.values()))
    counts = np.array([[confusion[t][p] for p in predicted] for t in true])
    shares = counts / counts.sum(1, keepdims=True)
    figure = Figure((1.5 + 0.6 * len(predicted), 1.2 + 0.55 * len(true)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts):
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    axes.set_xticks(range(len(predicted)), predicted)
    axes.set_yticks(range(len(true)), true)
    axes.set(xlabel="predicted language", ylabel="true language", title="Utterances by language")
    return figure


def draw_fusion(weights: Array, linears: Sequence[str], languages: Sequence[str]) -> Figure:
    """Draw the weight of each expert in each fused linear.

    Args:
        weights: shape (G, P, E): linear, factor (A and B, or their product), expert.
        linears: names of the linears, in the model's order.
        languages: languages of the experts.
    """
    factors = ["A", "B"] if weights.shape[1] == 2 else ["B A"]
    figure = Figure((3 + 3 * len(factors), 1.4 + 0.2 * len(linears)), layout="constrained")
    panels = figure.subplots(1, len(factors), sharey=True, squeeze=False)[0]
    uniform = 1 / len(languages)
    scale = TwoSlopeNorm(uniform, min(weights.min(), uniform - 1e-3), max(weights.max(), uniform + 1e-3))
    names = [name.removeprefix("model.encoder.layers.").replace(".self_attn", "") for name in linears]
    for i, (axes, factor) in enumerate(zip(panels, factors, strict=True)):
        image = axes.imshow(weights[:, i], cmap="RdBu_r", norm=scale, aspect="auto")
        axes.set_xticks(range(len(languages)), languages)
        axes.set_yticks(range(len(linears)), names, fontsize=7)
        axes.set(title=f"weight of {factor}", xlabel="expert")
    panels[0].set_ylabel("encoder layer (from 0) and linear")
    figure.colorbar(image, ax=panels, label=f"white: uniform, {uniform:.3f}")
    return figure


def draw_energy(shares: Mapping[str, Array], ranks: Mapping[str, int]) -> Figure:
    """Draw how much of the averaged experts' energy remains at each rank, one line for each layer.

    Args:
        shares: ``enc1``, ..., ``dec1``, ... -> share of the energy at rank 1 .. K, shape (K,).
        ranks: label -> rank to mark with a vertical line.
    """
    figure = Figure((9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, part in zip(panels, ("enc", "dec"), strict=True):
        layers = {name: share for name, share in shares.items() if name.startswith(part)}
        for color, (name, share) in zip(
            colormaps["viridis"](np.linspace(0, 0.9, len(layers))), layers.items(), strict=True
        ):
            axes.plot(range(1, len(share) + 1), 100 * share, color=color, label=name.removeprefix(part))
        for label, rank in ranks.items():
            axes.axvline(rank, color="grey", linestyle=":")
            axes.annotate(label, (rank, 3), xytext=(3, 0), textcoords="offset points", rotation=90, fontsize=8)
        axes.set(xscale="log", xlabel="rank", ylim=(0, 102), title=f"{part}oder")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.3)
        axes.legend(title="layer", fontsize=7, ncols=1 + len(layers) // 9, loc="lower right")
    panels[0].set_ylabel("energy in percent")
    return figure


def draw_curves(
    points: Sequence[float],
    left: Mapping[str, Sequence[Sequence[float]]],
    right: Mapping[str, Sequence[Sequence[float]]],
    labels: Sequence[str],
) -> Figure:
    """Draw mean and standard deviation over the seeds against the points of an axis.

    Args:
        points: of the horizontal axis.
        left: curve on the left axis -> values of the seeds at each point.
        right: the same for the right axis.
        labels: of the horizontal, the left and the right axis.
    """
    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    curves = [(axes, *curve) for curve in left.items()]
    twin = axes.twinx()
    curves += [(twin, f"{name} (right)", values) for name, values in right.items()]
    for (panel, name, values), style in zip(curves, ("C0o-", "C1s-", "C2^--", "C3v:"), strict=False):
        deviations = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        panel.errorbar(points, [fmean(v) for v in values], deviations, fmt=style, label=name, capsize=3)
    axes.set(xlabel=labels[0], ylabel=labels[1], xticks=list(points))
    twin.set(ylabel=labels[2])
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def draw_cosines(cosines: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the similarity of each system's hidden states to those of the experts.

    Args:
        cosines: system -> ``enc1``, ..., ``dec1``, ... -> mean cosine.
    """
    names = list(next(iter(cosines.values())))
    figure = Figure((2.5 + 0.45 * len(names), 3.8), layout="constrained")
    axes = figure.subplots()
    for marker, (system, values) in zip(MARKERS, cosines.items(), strict=False):
        axes.plot(names, [values[name] for name in names], marker=marker, label=system)
    axes.set(xlabel="layer", ylabel="mean cosine to the expert's states")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def draw_states(points: Mapping[str, Array], langs: Sequence[str], notes: Mapping[str, str]) -> Figure:
    """Draw utterances as points, one panel for each system, one color and marker for each language.

    Args:
        points: system -> shape (N, 2).
        langs: language of each of the N utterances.
        notes: system -> text below its name.
    """
    figure = Figure((1 + 3.5 * len(points), 3.8), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (system, states) in zip(panels, points.items(), strict=True):
        for i, lang in enumerate(sorted(set(langs))):
            x, y = states[np.array(langs) == lang].T
            axes.scatter(x, y, s=14, alpha=0.7, color=colormaps["tab10"](i % 10), marker=MARKERS[i // 10], label=lang)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{system}\n{notes[system]}", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure

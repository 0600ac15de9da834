#!/usr/bin/env python3
"""Draw figures of trained systems: ``python studies/plot.py {mole,energy,cosines,states} --help``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from analysis import energy_by_layer, layer_cosines, load_student, load_system, pooled_states, project, separability
from figures import draw_confusion, draw_cosines, draw_energy, draw_fusion, draw_states, save

from espnet_lole.evaluation.rates import read_confusion
from espnet_lole.lole.experts import LoRAExperts


def get_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    mole = commands.add_parser("mole", help="fusion weights and confusion of languages of a MoLE")
    mole.add_argument("--mole", type=Path, required=True, help="folder of its training")
    mole.add_argument("--decoded", type=Path, required=True, help="its language-agnostic decoding")
    mole.add_argument("--dumpdir", type=Path, required=True, help="holds <test_set>/utt2lang")
    mole.add_argument("--test_sets", required=True, help="names of the test sets, separated by spaces")
    mole.add_argument("--output_dir", type=Path, required=True, help="gets fusion_weights.png and lid_confusion.png")
    energy = commands.add_parser("energy", help="energy of the averaged experts by rank")
    energy.add_argument("--student", type=Path, help="folder of a student's training, to mark its rank")
    cosines = commands.add_parser("cosines", help="similarity of students' hidden states to those of the experts")
    states = commands.add_parser("states", help="utterances by language in the encoder's last hidden states")
    for command in (energy, cosines, states):
        command.add_argument("--experts", type=Path, required=True, help="folder of the experts' training")
        command.add_argument("--output", type=Path, required=True, help="file of the figure")
    for command in (cosines, states):
        command.add_argument("--systems", nargs="+", required=True, help="name=folder of each student's training")
    cosines.add_argument("--data", type=Path, required=True, help="formatted set with texts, such as dump/raw/dev")
    states.add_argument("--data", type=Path, nargs="+", required=True, help="formatted sets, dump/raw/<set>")
    return parser


def plot_mole(args: argparse.Namespace) -> None:
    """Plot fusion weights and the confusion of languages."""
    confusion: dict[str, Counter[str]] = {}
    for name in args.test_sets.split():
        for lang, predicted in read_confusion(args.decoded / name / "lang", args.dumpdir / name / "utt2lang").items():
            confusion.setdefault(lang, Counter()).update(predicted)
    save(draw_confusion(confusion), args.output_dir / "lid_confusion.png")
    mole = load_system(args.mole)
    if fused := mole.frontend.fused:
        weights = torch.stack([layer.weights for layer in fused.values()]).detach().numpy()  # (G, P, E)
        save(draw_fusion(weights, list(fused), mole.experts.languages), args.output_dir / "fusion_weights.png")


def plot_energy(args: argparse.Namespace) -> None:
    """Plot the energy of the averaged experts by rank."""
    experts = load_system(args.experts)
    ranks = {"an expert's rank": experts.config.rank}
    if args.student is not None:
        ranks["the student's rank"] = load_system(args.student).config.rank
    save(draw_energy({name: share.numpy() for name, share in energy_by_layer(experts).items()}, ranks), args.output)


def plot_cosines(args: argparse.Namespace) -> None:
    """Plot the cosines of students' hidden states to those of the experts, by layer."""
    students = {name: load_student(folder, args.experts) for name, folder in named(args.systems).items()}
    cosines = {name: layer_cosines(model, args.data) for name, model in students.items()}
    save(draw_cosines(cosines), args.output)


def plot_states(args: argparse.Namespace) -> None:
    """Plot two principal components of the pooled hidden states of the backbone and of each student."""
    systems = {"backbone": load_system(args.experts).whisper}  # no expert is active
    systems |= {name: load_system(folder) for name, folder in named(args.systems).items()}
    points, notes = {}, {}
    for name, system in systems.items():
        whisper, adapter = (system.whisper, system) if isinstance(system, LoRAExperts) else (system, None)
        states, langs = pooled_states(whisper, adapter, args.data)
        points[name] = project(states).numpy()
        notes[name] = f"{separability(states, langs):.1f} % nearest to their language's mean"
    save(draw_states(points, langs, notes), args.output)


def named(texts: list[str]) -> dict[str, Path]:
    """Parse ``name=folder`` options.

    Raises:
        ValueError: an option does not have this form.
    """
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (name, _, folder) in zip(texts, pairs, strict=True) if not name or not folder]:
        raise ValueError(f"expected name=folder in --systems, got {wrong[0]!r}")
    return {name: Path(folder) for name, _, folder in pairs}


PLOTS = {"mole": plot_mole, "energy": plot_energy, "cosines": plot_cosines, "states": plot_states}


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    try:
        PLOTS[args.command](args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

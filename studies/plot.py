#!/usr/bin/env python3
"""Draw figures of trained systems: ``python studies/plot.py {mole,energy,cosines,states} --help``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from figures import draw_confusion, draw_cosines, draw_energy, draw_fusion, draw_states, save

from espnet_lole.config import load_yaml
from espnet_lole.evaluation.rates import read_confusion
from espnet_lole.lole.adapters import Adapter, load_bank
from espnet_lole.lole.kd_init import energy_by_layer
from espnet_lole.whisper.checkpoint import load_backbone
from espnet_lole.whisper.tokenizer import WhisperTokens


def get_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    mole = commands.add_parser("mole", help="fusion weights and confusion of languages of a MoLE")
    mole.add_argument("--mole", type=Path, required=True, help="checkpoint of MoLE, in the folder of its config.yaml")
    mole.add_argument("--decoded", type=Path, required=True, help="its language-agnostic decoding")
    mole.add_argument("--dumpdir", type=Path, required=True, help="holds <test_set>/utt2lang")
    mole.add_argument("--test_sets", required=True, help="names of the test sets, separated by spaces")
    mole.add_argument("--output_dir", type=Path, required=True, help="gets fusion_weights.png and lid_confusion.png")
    energy = commands.add_parser("energy", help="energy of the averaged experts by rank")
    energy.add_argument("--student", type=Path, help="adapter of a student, to mark its rank")
    cosines = commands.add_parser("cosines", help="similarity of students' hidden states to those of the experts")
    states = commands.add_parser("states", help="utterances by language in the encoder's last hidden states")
    for command in (energy, cosines, states):
        command.add_argument("--config", type=Path, required=True, help="config.yaml of the experts' training")
        command.add_argument("--output", type=Path, required=True, help="file of the figure")
    for command in (energy, cosines):
        command.add_argument("--experts", type=Path, required=True, help="folder of the experts' adapters")
    for command in (cosines, states):
        command.add_argument("--adapters", nargs="+", required=True, help="name=folder of each student")
        command.add_argument("--data", type=Path, nargs="+", required=True, help="formatted sets, dump/raw/<set>")
    return parser


def plot_mole(args: argparse.Namespace) -> None:
    """Plot fusion weights and the confusion of languages."""
    from espnet_lole.tasks.lole import LoLETask

    confusion: dict[str, Counter[str]] = {}
    for name in args.test_sets.split():
        for lang, predicted in read_confusion(args.decoded / name / "lang", args.dumpdir / name / "utt2lang").items():
            confusion.setdefault(lang, Counter()).update(predicted)
    model, _ = LoLETask.build_model_from_file(None, args.mole)
    save(draw_confusion(confusion), args.output_dir / "lid_confusion.png")
    if model.fusion.groups:
        weights = model.fusion.weights().detach().numpy()
        save(draw_fusion(weights, model.fusion.groups, model.bank.languages), args.output_dir / "fusion_weights.png")


def plot_energy(args: argparse.Namespace) -> None:
    """Plot the energy of the averaged experts by rank."""
    experts = load_bank(load_backbone(load_yaml(args.config)["backbone"]).model, args.experts)
    ranks = {"an expert's rank": experts.config.rank}
    if args.student is not None:
        ranks["the student's rank"] = Adapter.read(args.student).config.r
    save(draw_energy({name: share.numpy() for name, share in energy_by_layer(experts).items()}, ranks), args.output)


def plot_cosines(args: argparse.Namespace) -> None:
    """Plot the cosines of students' hidden states to those of the experts, by layer."""
    from analysis import layer_cosines

    from espnet_lole.espnet_student_model import DistillConfig, ESPnetStudentModel

    config, cosines = load_yaml(args.config), {}
    for name, folder in named(args.adapters).items():
        backbone = load_backbone(config["backbone"], config["window"])
        tokens = WhisperTokens(backbone.model.config.vocab_size)
        experts = load_bank(backbone.model, args.experts)
        student = load_bank(backbone.model, folder.parent, [folder.name])
        model = ESPnetStudentModel(backbone, experts.languages, experts, student, tokens, DistillConfig(kd="layers"), 1)
        (cosines[name],) = (layer_cosines(model.eval(), data) for data in args.data)
    save(draw_cosines(cosines), args.output)


def plot_states(args: argparse.Namespace) -> None:
    """Plot two principal components of the pooled hidden states of the backbone and of each student."""
    from analysis import pooled_states, project, separability

    config, points, notes = load_yaml(args.config), {}, {}
    for name, folder in ({"backbone": None} | named(args.adapters)).items():
        backbone = load_backbone(config["backbone"], config["window"])
        student = None if folder is None else load_bank(backbone.model, folder.parent, [folder.name])
        states, langs = pooled_states(backbone, student, args.data)
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
        raise ValueError(f"expected name=folder in --adapters, got {wrong[0]!r}")
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

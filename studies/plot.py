#!/usr/bin/env python3
"""Draw pictures of trained systems: ``python -m plot {mole,energy,cosines,states} --help``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from figures import draw_confusion, draw_cosines, draw_energy, draw_fusion, draw_states

from espnet_lole.config import load_yaml
from espnet_lole.evaluation.rates import read_confusion
from espnet_lole.lole.adapters import Adapter, load_bank
from espnet_lole.lole.kd_init import energy_by_layer
from espnet_lole.whisper.checkpoint import load_backbone
from espnet_lole.whisper.tokenizer import WhisperTokens


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    mole = commands.add_parser("mole", help="its fusion weights, and the confusion of its languages")
    mole.add_argument("--mole", type=Path, required=True, help="checkpoint of MoLE; its config.yaml is beside it")
    mole.add_argument("--decoded", type=Path, required=True, help="its language-agnostic decoding, with a folder a test set")
    mole.add_argument("--dumpdir", type=Path, required=True, help="holds <test_set>/utt2lang")
    mole.add_argument("--test_sets", required=True, help="names of the test sets, with spaces between them")
    mole.add_argument("--output_dir", type=Path, required=True, help="gets fusion_weights.png and lid_confusion.png")
    energy = commands.add_parser("energy", help="how much of the averaged experts each rank keeps")
    energy.add_argument("--student", type=Path, help="adapter of a student, whose rank is marked")
    cosines = commands.add_parser("cosines", help="how near the states of students are to those of the experts")
    states = commands.add_parser("states", help="utterances by language in the encoder's last states")
    for command in (energy, cosines, states):
        command.add_argument("--config", type=Path, required=True, help="config.yaml of the experts' training")
        command.add_argument("--output", type=Path, required=True, help="the picture")
    for command in (energy, cosines):
        command.add_argument("--experts", type=Path, required=True, help="folder of the experts' adapters")
    for command in (cosines, states):
        command.add_argument("--adapters", nargs="+", required=True, help="name=folder of each adapter for all languages")
        command.add_argument("--data", type=Path, nargs="+", required=True, help="formatted sets, dump/raw/<set>")
    return parser


def draw_mole(args: argparse.Namespace) -> None:
    """Fusion weights and LID confusion."""
    from espnet_lole.tasks.lole import LoLETask

    confusion: dict[str, Counter[str]] = {}
    for name in args.test_sets.split():
        for lang, found in read_confusion(args.decoded / name / "lang", args.dumpdir / name / "utt2lang").items():
            confusion.setdefault(lang, Counter()).update(found)
    model, _ = LoLETask.build_model_from_file(None, args.mole)
    draw_confusion(confusion, args.output_dir / "lid_confusion.png")
    if model.fusion.groups:
        weights = model.fusion.weights().detach().numpy()
        draw_fusion(weights, model.fusion.groups, model.bank.languages, args.output_dir / "fusion_weights.png")


def draw_ranks(args: argparse.Namespace) -> None:
    """Energy of the averaged experts."""
    experts = load_bank(load_backbone(load_yaml(args.config)["backbone"]).model, args.experts)
    ranks = {"an expert's rank": experts.config.rank}
    if args.student is not None:
        ranks["the student's rank"] = Adapter.read(args.student).config.r
    draw_energy({name: share.numpy() for name, share in energy_by_layer(experts).items()}, ranks, args.output)


def draw_nearness(args: argparse.Namespace) -> None:
    """Cosines to the experts' states by layer."""
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
    draw_cosines(cosines, args.output)


def draw_languages(args: argparse.Namespace) -> None:
    """Principal components of the pooled states of the backbone and of each adapter."""
    from analysis import pooled_states, project, separability

    config, points, notes = load_yaml(args.config), {}, {}
    for name, folder in ({"backbone": None} | named(args.adapters)).items():
        backbone = load_backbone(config["backbone"], config["window"])
        adapter = None if folder is None else load_bank(backbone.model, folder.parent, [folder.name])
        states, langs = pooled_states(backbone, adapter, args.data)
        points[name] = project(states).numpy()
        notes[name] = f"{separability(states, langs):.1f} % nearest to their language's mean"
    draw_states(points, langs, notes, args.output)


def named(texts: list[str]) -> dict[str, Path]:
    """``name=folder`` options.

    Raises:
        ValueError: one is not of that form.
    """
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (name, _, folder) in zip(texts, pairs, strict=True) if not name or not folder]:
        raise ValueError(f"expected name=folder in --adapters, got {wrong[0]!r}")
    return {name: Path(folder) for name, _, folder in pairs}


DRAW = {"mole": draw_mole, "energy": draw_ranks, "cosines": draw_nearness, "states": draw_languages}


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    try:
        DRAW[args.command](args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

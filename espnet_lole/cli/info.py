"""Tell what a trained system is: languages, ranks, parameters, training figures, error rates.

Examples:
  lole info exp/lole_train_mole_raw_lole_mini_seed0
  lole info DIR --json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=Path, metavar="DIR", help="folder of a trained system, of adapters, or of a Whisper")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def run(args: argparse.Namespace) -> None:
    """Print the facts.

    Raises:
        FileNotFoundError: there is no system.
        ValueError: the folder holds something else.
    """
    from espnet_lole.export.facts import gather
    from espnet_lole.inference.system import find_system

    facts = gather(args.model, find_system(args.model))
    errors = {" ".join(key): value for key, value in facts.errors.items()}
    if args.json:
        print(json.dumps(vars(facts) | {"errors": errors}, ensure_ascii=False))
        return
    print(f"system      {facts.kind}\nbackbone    {facts.backbone}\nlanguages   {' '.join(facts.languages)}")
    for name, rank in facts.ranks.items():
        print(f"adapter     {name}: rank {rank}, {facts.parameters[name]:,} parameters")
    if facts.shared_layers is not None:
        print(f"L1          encoder layers 1 to {facts.shared_layers} are shared by the languages")
    if facts.epochs is not None:
        figures = ", ".join(f"{name} {value:g}" for name, value in facts.training.items())
        print(f"training    {facts.epochs} epochs; on the validation set {figures}")
    if facts.hours:
        print(f"data        {', '.join(f'{lang} {hours:.2f} h' for lang, hours in facts.hours.items())}")
    for key, value in errors.items():
        print(f"error       {key}: {value:.1f} %")

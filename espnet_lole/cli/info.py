"""Describe a trained system: languages, ranks, parameters, training, error rates.

Examples:
  lole info exp/lole_train_mole_raw_lole_mini_seed0
  lole info DIR --json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "model", type=Path, metavar="DIR", help="folder of a trained system, of adapters, or of a Whisper"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Print the metadata.

    Raises:
        FileNotFoundError: there is no system.
        ValueError: the folder holds something else.
    """
    from espnet_lole.export.metadata import collect_metadata
    from espnet_lole.inference.load import find_system

    metadata = collect_metadata(find_system(args.model))
    if args.json:
        print(json.dumps(asdict(metadata), ensure_ascii=False))
        return
    topics = metadata.describe()
    if metadata.history.hours:
        topics["data"] = ", ".join(f"{lang} {hours:.2f} h" for lang, hours in metadata.history.hours.items())
    for scenario, rates in metadata.history.error_rates.items():
        topics[f"error, {scenario}"] = ", ".join(f"{lang} {rate:.1f} %" for lang, rate in rates.items())
    for topic, text in topics.items():
        print(f"{topic:<18}{text}")

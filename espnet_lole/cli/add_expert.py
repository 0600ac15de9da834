"""Make a peft adapter that was trained elsewhere the expert of a language.

The adapter must be a plain LoRA of the same Whisper; other ranks and targets than those of the experts beside it are fine.

Examples:
  lole add-expert my_adapter --lang pt --model exp/lole_train_experts_raw_lole_mini_seed0
  lole add-expert my_adapter --lang pt --model adapters --backbone openai/whisper-medium
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("adapter", type=Path, help="folder with adapter_config.json and adapter_model.safetensors")
    parser.add_argument("--lang", required=True, help="language code of Whisper, such as pt")
    parser.add_argument("--model", type=Path, required=True, help="folder of experts: an experiment, an export, or adapters")
    parser.add_argument("--backbone", help="folder or hub name of the Whisper; default: that of the experts")
    parser.add_argument("--replace", action="store_true", help="replace the expert that the language has")


def run(args: argparse.Namespace) -> None:
    """Check the adapter on the backbone, and install it.

    Raises:
        FileNotFoundError: the adapter or the experts are not there.
        ValueError: it does not fit, or the language has an expert already.
    """
    from espnet_lole.export.adapters import install_expert

    folder = install_expert(args.adapter, args.lang, args.model, args.backbone, args.replace)
    print(f"{args.lang} has an expert: {folder}")

"""Add a peft adapter that was trained elsewhere as the expert of a language.

The adapter must be a plain LoRA of the same Whisper. Its rank and targets may differ from those of the other experts.

Examples:
  lole add-expert my_adapter --lang pt --model exp/lole_train_experts_raw_lole_mini_seed0
  lole add-expert my_adapter --lang pt --model adapters --backbone openai/whisper-medium
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from espnet_lole.atomic_io import atomic_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("adapter", type=Path, help="folder with adapter_config.json and adapter_model.safetensors")
    parser.add_argument("--lang", required=True, help="language code of Whisper, such as pt")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of experts: a training, an export, or adapters"
    )
    parser.add_argument("--backbone", help="folder or hub name of the Whisper; default: that of the experts")
    parser.add_argument("--replace", action="store_true", help="replace the expert that the language has")


def run(args: argparse.Namespace) -> None:
    """Check the adapter on the backbone of the experts, and copy it into their folder.

    Raises:
        FileNotFoundError: the adapter, the experts or the backbone are missing.
        ValueError: the adapter does not fit, Whisper does not know the language, or the language has an expert.
    """
    from espnet_lole.inference.load import find_system
    from espnet_lole.lole.adapters import load_adapters
    from espnet_lole.whisper.checkpoint import load_whisper
    from espnet_lole.whisper.tokenizer import WhisperTokenizer

    system = find_system(args.model, args.backbone)
    if system.system != "experts":
        raise ValueError(
            f"{args.model} holds a system of kind {system.system}, not experts: name the folder of its experts; "
            "MoLE and a student learn a language only by training"
        )
    folder = system.adapters / args.lang
    if folder.exists() and not args.replace:
        raise ValueError(f"{args.lang} has an expert already, {folder}: give --replace to replace it")
    whisper = load_whisper(system.backbone)
    WhisperTokenizer(whisper.model.config.vocab_size).language(args.lang)
    adapter = args.adapter.resolve()
    load_adapters(whisper, adapter.parent, [adapter.name])
    with atomic_folder(folder) as made:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(adapter / file, made / file)
    print(f"added the expert of {args.lang}: {folder}")

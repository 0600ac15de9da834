"""Add a peft adapter that was trained elsewhere as the expert of a language.

The adapter must be a plain LoRA of the same Whisper. Its rank and targets may differ from those of the other experts,
its pad_to (the silence after the speech) may not: an adapter that notes none was trained on 30 s, as in transformers.

Examples:
  lole add-expert my_adapter --lang pt --model exp/lole_train_experts_raw_lole_mini_seed0
  lole add-expert my_adapter --lang pt --model adapters --backbone openai/whisper-medium
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_lole.ownership import check_output

if TYPE_CHECKING:
    from espnet_lole.inference.load import SystemFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("adapter", type=Path, help="folder with adapter_config.json and its weights")
    parser.add_argument("--lang", required=True, help="language code of Whisper, such as pt")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of experts: a training, an export, or adapters"
    )
    parser.add_argument("--backbone", help="folder or hub name of the Whisper; default: that of the experts")
    parser.add_argument(
        "--pad_to", help="padding that the adapter was trained with: none, +1s, 30s; default: as it notes, or 30s"
    )
    parser.add_argument("--replace", action="store_true", help="replace the expert that the language has")


def run(args: argparse.Namespace) -> None:
    """Check the adapter on the backbone of the experts, and write it into their folder as this project does.

    Raises:
        FileNotFoundError: the adapter, the experts or the backbone are missing.
        ValueError: the adapter does not fit, Whisper does not know the language, or the language has an expert.
    """
    from espnet_lole.inference.load import find_system
    from espnet_lole.lole.adapters import FILES, Adapter, build_experts, save_adapter, trained_pad_to, trained_share_30s
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
    check_output(folder, known=FILES)
    adapter = Adapter.read(args.adapter)
    pad_to = args.pad_to or trained_pad_to(args.adapter)
    check_origin(adapter.config.base_model_name_or_path, pad_to, system, args)
    whisper = load_whisper(system.backbone, pad_to, share_30s=trained_share_30s(args.adapter))
    WhisperTokenizer(whisper.model.config.vocab_size).language(args.lang)
    save_adapter(build_experts(whisper, {args.lang: adapter}), args.lang, folder, system.backbone)
    print(f"added the expert of {args.lang}: {folder}")


def check_origin(base_model: str | None, pad_to: str, system: SystemFolder, args: argparse.Namespace) -> None:
    """Check that an adapter was trained on the backbone of the experts, and with their padding.

    Raises:
        ValueError: it was not.
    """
    from dataclasses import replace

    from espnet_lole.whisper.sizes import SIZES

    if base_model in SIZES and system.backbone in SIZES and base_model != system.backbone:
        raise ValueError(f"{args.adapter} was trained on {base_model}, but the experts on {system.backbone}")
    others = replace(system, languages=tuple(lang for lang in system.languages if lang != args.lang))
    paddings = sorted(set(others.trained_paddings().values()))
    if paddings and pad_to not in paddings:
        raise ValueError(
            f"{args.adapter} was trained with pad_to: {pad_to}, the experts with {' '.join(paddings)}, and a system "
            f"has one: use the adapter by itself, --model {args.adapter}, or give --pad_to {paddings[0]} if that is "
            "how it was trained"
        )

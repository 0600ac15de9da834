"""Export a trained system.

formats:
  folder       the whole system in one folder, with a model card (README.md); Speech2Text and lole read it
  pack         the same in one archive (.zip) that ESPnet unpacks
  merged       a student, a multilingual LoRA, or the expert of --lang, merged into a Whisper of transformers
  ctranslate2  the same for CTranslate2 and faster-whisper
The adapters are folders of peft already: DIR/adapters/<lang>.

Examples:
  lole export exp/lole_train_mole_raw_lole_mini_seed0 my_mole --data "synthetic speech of eight languages"
  lole export exp/lole_train_mole_raw_lole_mini_seed0 my_mole.zip --format pack
  lole export exp/lole_train_student_raw_lole_mini_seed0 my_whisper --format merged
  lole export exp/lole_train_experts_raw_lole_mini_seed0 german --format ctranslate2 --lang de
"""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = ("folder", "pack", "merged", "ctranslate2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=Path, metavar="DIR", help="folder of a trained system")
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="new folder to write; with --format pack, the .zip archive"
    )
    parser.add_argument("--format", default="folder", choices=FORMATS, help="default: folder")
    parser.add_argument("--lang", help="merged, ctranslate2: language of the expert to merge")
    parser.add_argument(
        "--test_dirs",
        type=Path,
        nargs="+",
        default=[],
        help="merged, ctranslate2: formatted test sets, dump/raw/<set>, to measure on in transformers, for the card",
    )
    parser.add_argument("--backbone", help="folder or hub name of the Whisper; default: that of the training")
    parser.add_argument("--licence", default="apache-2.0", help="licence for the model card; default: apache-2.0")
    parser.add_argument("--data", default="", help="description of the training data for the model card")


def run(args: argparse.Namespace) -> None:
    """Write the export.

    Raises:
        FileNotFoundError: the system or a part of it is missing.
        ValueError: the system cannot be exported in this format.
    """
    from espnet_lole.export.bundle import pack_bundle, save_bundle
    from espnet_lole.export.ctranslate2 import save_ctranslate2
    from espnet_lole.export.merged import save_merged
    from espnet_lole.inference.load import find_system

    system = find_system(args.model, args.backbone)
    if args.format == "folder":
        save_bundle(system, args.output, args.licence, args.data)
    elif args.format == "pack":
        pack_bundle(system, args.output, args.licence, args.data)
    else:
        save = save_merged if args.format == "merged" else save_ctranslate2
        save(system, args.output, args.lang, args.licence, args.data, args.test_dirs)
    print(args.output)

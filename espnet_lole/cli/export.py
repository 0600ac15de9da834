"""Export a trained system.

formats:
  folder       the whole system in one folder, with a model card (README.md); Speech2Text and lole read it
  espnet       a student, a multilingual LoRA, a whole Whisper, or the expert of --lang, as a stock ASR model of ESPnet
  merged       the same merged into a Whisper of transformers
  ctranslate2  the same for CTranslate2 and faster-whisper
OUT with the ending .zip is one archive, which ESPnet unpacks. The adapters are folders of peft already:
DIR/adapters/<lang>.

Examples:
  lole export exp/lole_train_mole_raw_lole_mini_seed0 my_mole --data "synthetic speech of eight languages"
  lole export exp/lole_train_mole_raw_lole_mini_seed0 my_mole.zip
  lole export exp/lole_train_student_raw_lole_mini_seed0 my_student.zip --format espnet
  lole export exp/lole_train_student_raw_lole_mini_seed0 my_whisper --format merged
  lole export exp/lole_train_experts_raw_lole_mini_seed0 german --format ctranslate2 --lang de
"""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = ("folder", "espnet", "merged", "ctranslate2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=Path, metavar="DIR", help="folder of a trained system")
    parser.add_argument("output", type=Path, metavar="OUT", help="new folder to write, or archive with the ending .zip")
    parser.add_argument("--format", default="folder", choices=FORMATS, help="default: folder")
    parser.add_argument("--lang", help="espnet, merged, ctranslate2: language of the expert to merge")
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
    from espnet_lole.export.bundle import save_archive, save_bundle
    from espnet_lole.export.ctranslate2 import save_ctranslate2
    from espnet_lole.export.espnet import save_espnet
    from espnet_lole.export.merged import save_merged
    from espnet_lole.inference.load import find_system

    system, card = find_system(args.model, args.backbone), (args.licence, args.data)
    writers = {
        "folder": lambda folder: save_bundle(system, folder, *card),
        "espnet": lambda folder: save_espnet(system, folder, args.lang, *card),
        "merged": lambda folder: save_merged(system, folder, args.lang, *card, args.test_dirs),
        "ctranslate2": lambda folder: save_ctranslate2(system, folder, args.lang, *card, args.test_dirs),
    }
    if args.output.suffix in (".gz", ".tar", ".tgz"):
        raise ValueError(f"the archive {args.output} must have the ending .zip")
    if args.output.suffix == ".zip":
        save_archive(args.output, writers[args.format])
    else:
        writers[args.format](args.output)
    print(args.output)

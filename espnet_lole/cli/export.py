"""Export a trained system for others.

formats:
  folder       all that it needs in one folder, with a card (README.md) for a hub; Speech2Text and lole read it
  pack         the same in one file, by ESPnet's pack
  merged       a student, or the expert of --lang, merged into a Whisper of transformers
  ctranslate2  the same for CTranslate2 and faster-whisper
The adapters themselves are folders of peft already, which vLLM loads too: DIR/adapters/<lang>.

Examples:
  lole export exp/lole_train_mole_raw_lole_mini_seed0 my_mole --data "synthetic speech of eight languages"
  lole export exp/lole_train_mole_raw_lole_mini_seed0 my_mole.zip --format pack
  lole export exp/lole_train_student_raw_lole_mini_seed0 my_whisper --format merged
  lole export exp/lole_train_experts_raw_lole_mini_seed0 german --format ctranslate2 --lang de
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from espnet_lole.atomic_io import whole_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=Path, metavar="DIR", help="folder of a trained system")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write, or archive of --format pack (.zip, .tgz)")
    parser.add_argument("--format", default="folder", choices=["folder", "pack", "merged", "ctranslate2"])
    parser.add_argument("--lang", help="merged, ctranslate2: the expert to merge")
    parser.add_argument("--backbone", help="folder or hub name of the Whisper; default: that of the training")
    parser.add_argument("--licence", default="apache-2.0", help="for the card, as hubs abbreviate it; default: apache-2.0")
    parser.add_argument("--data", default="", help="for the card: what it was trained on, in words")


def run(args: argparse.Namespace) -> None:
    """Write the export.

    Raises:
        FileNotFoundError: the system or a part of it is not there.
        ValueError: the system has no such form.
    """
    from espnet_lole.export.folder import save_ctranslate2, save_folder, save_whisper
    from espnet_lole.inference.system import find_system

    system = find_system(args.model, args.backbone)
    about = (args.licence, args.data)
    with tempfile.TemporaryDirectory() as scratch:
        step = Path(scratch) / args.output.stem
        if args.format == "folder":
            save_folder(args.model, system, args.output, *about)
        elif args.format == "pack":
            save_folder(args.model, system, step, *about)
            pack_folder(step, args.output)
        elif args.format == "merged":
            save_whisper(args.model, system, args.output, args.lang, *about)
        elif system.kind == "whisper":
            save_ctranslate2(args.model, args.output)
        else:
            save_whisper(args.model, system, step, args.lang, *about)
            save_ctranslate2(step, args.output)
    print(args.output)


def pack_folder(exported: Path, archive: Path) -> None:
    """Pack an exported folder by ESPnet's ``pack``; its ``unpack`` gives the folder back.

    Args:
        exported: what ``save_folder`` wrote.
        archive: of an ending that ESPnet knows: ``.zip``, ``.tar``, ``.tgz`` ...

    Raises:
        ValueError: another ending, or ESPnet is not installed.
        OSError: it cannot be written.
    """
    from espnet_lole.inference.system import MOLE_WEIGHTS

    try:
        from espnet2.main_funcs.pack_funcs import pack
    except ImportError as error:
        raise ValueError("expected ESPnet, which packs, but it is not installed: pip install espnet") from error
    with (
        whole_file(archive.resolve()) as made,
        _inside(exported),
        redirect_stdout(sys.stderr),
    ):  # pack keeps paths relative to the working directory, and prints them
        files = {"asr_model_file": MOLE_WEIGHTS} if Path(MOLE_WEIGHTS).is_file() else {}
        rest = [file for file in Path().rglob("*") if file.is_file() and str(file) not in ("config.yaml", MOLE_WEIGHTS)]
        pack(files, {"asr_train_config": "config.yaml"}, made, sorted(rest))


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Within the context, the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)

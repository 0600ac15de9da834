#!/usr/bin/env python3
"""Write trained experts, or a student, as ``peft`` adapters: a folder for each language, or one."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from espnet_lole.backbone.load import load_backbone
from espnet_lole.experts.adapters import save_expert
from espnet_lole.export.whisper import save_merged


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asr_model_file", type=Path, required=True, help="checkpoint; its config.yaml is beside it")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets a folder for each adapter")
    parser.add_argument("--merged", type=Path, help="student: also a Whisper of transformers with the student in its weights")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from espnet_lole.espnet_student_model import STUDENT
    from espnet_lole.tasks.lole import LoLETask

    try:
        model, train_args = LoLETask.build_model_from_file(None, args.asr_model_file)
        bank = model.student if train_args.system == "student" else model.bank
        for name in bank.languages:
            save_expert(bank, name, args.output_dir / name, train_args.backbone)
        if args.merged is not None:
            save_merged(load_backbone(train_args.backbone).model, args.output_dir / STUDENT, args.merged, train_args.langs)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    logging.info(f"adapters of {' '.join(bank.languages)} in {args.output_dir}")


if __name__ == "__main__":
    main()

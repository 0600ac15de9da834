#!/usr/bin/env python3
"""Write the trained experts as ``peft`` adapters, a folder for each language."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from espnet_lole.experts.adapters import save_expert


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asr_model_file", type=Path, required=True, help="checkpoint; its config.yaml is beside it")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets a folder for each language")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from espnet_lole.tasks.lole import LoLETask

    try:
        model, train_args = LoLETask.build_model_from_file(None, args.asr_model_file)
        for lang in model.bank.languages:
            save_expert(model.bank, lang, args.output_dir / lang, train_args.backbone)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    logging.info(f"adapters of {' '.join(model.bank.languages)} in {args.output_dir}")


if __name__ == "__main__":
    main()

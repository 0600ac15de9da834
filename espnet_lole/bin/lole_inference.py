#!/usr/bin/env python3
"""Transcribe formatted test sets with language experts, or with the backbone alone."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import yaml

from espnet_lole.backbone.load import PRECISIONS, load_backbone
from espnet_lole.backbone.tokens import WhisperTokens
from espnet_lole.decode.inference import Transcriber, transcribe_sets
from espnet_lole.decode.search import SearchConfig


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--test_dirs", type=Path, nargs="+", required=True, help="formatted test sets, dump/raw/<set>")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets a folder for each test set")
    parser.add_argument("--asr_model_file", type=Path, help="checkpoint of the experts; none: the backbone alone")
    parser.add_argument("--asr_train_config", type=Path, help="config.yaml of the training; default: beside the checkpoint")
    parser.add_argument("--backbone", help="hub name or folder; default: that of the training")
    parser.add_argument("--window", default="short", choices=["short", "30s"], help="for the backbone alone")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="for the backbone alone")
    parser.add_argument("--config", type=Path, help="YAML with beam_size, maxlenratio, length_penalty, batch_seconds")
    parser.add_argument("--ngpu", type=int, default=0)
    return parser


def build_transcriber(args: argparse.Namespace, search: SearchConfig) -> Transcriber:
    """The system that the options describe.

    Raises:
        ValueError: neither a checkpoint nor a backbone is given, or the checkpoint is of another backbone.
        FileNotFoundError: a file is missing.
    """
    device = "cuda" if args.ngpu > 0 else "cpu"
    if args.asr_model_file is None:
        if args.backbone is None:
            raise ValueError("expected --asr_model_file or --backbone, got neither")
        backbone = load_backbone(args.backbone, args.window, args.precision).to(device)
        return Transcriber(backbone, WhisperTokens(backbone.model.config.vocab_size), None, search)
    for file in (args.asr_model_file, args.asr_train_config or args.asr_model_file.parent / "config.yaml"):
        if not file.is_file():
            raise FileNotFoundError(f"expected a trained system, but {file} is not there: run stage 11")
    from espnet_lole.tasks.lole import LoLETask  # ESPnet's task takes seconds to import; the backbone alone needs none

    model, _ = LoLETask.build_model_from_file(args.asr_train_config, args.asr_model_file, device)
    model.eval()
    return Transcriber(model.backbone, model.tokens, model.bank, search)


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s")
    args = get_parser().parse_args(cmd)
    try:
        conf = yaml.safe_load(args.config.read_text()) if args.config else {}
        seconds = conf.pop("batch_seconds", 160.0)
        if unknown := sorted(set(conf) - set(SearchConfig.__dataclass_fields__)):
            raise ValueError(f"expected in {args.config} {sorted(SearchConfig.__dataclass_fields__)}, got {unknown}")
        transcriber = build_transcriber(args, SearchConfig(**conf))
        rtf = transcribe_sets(transcriber, args.test_dirs, args.output_dir, seconds)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    logging.info(f"real-time factor {rtf:.3f}; hypotheses in {args.output_dir}")


if __name__ == "__main__":
    main()

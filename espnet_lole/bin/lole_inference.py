#!/usr/bin/env python3
"""Transcribe formatted test sets with a trained system, or with the backbone alone."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from espnet_lole.config import load_yaml
from espnet_lole.evaluation.resources import peak_memory_gb, write_resources
from espnet_lole.inference.system import System, adapters_in, load_system, read_decoding
from espnet_lole.inference.test_sets import transcribe_sets
from espnet_lole.whisper.checkpoint import PRECISIONS


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--test_dirs", type=Path, nargs="+", required=True, help="formatted test sets, dump/raw/<set>")
    parser.add_argument("--output_dir", type=Path, required=True, help="<output_dir>_<scenario> gets a folder for each test set")
    parser.add_argument("--asr_model_file", type=Path, help="checkpoint of MoLE")
    parser.add_argument("--experts", type=Path, help="or a folder of peft adapters, one a language")
    parser.add_argument("--resident", type=int, help="experts: at most this many in memory, the others on disk; default: all")
    parser.add_argument("--student", type=Path, help="or a peft adapter for all languages")
    parser.add_argument("--langs", nargs="+", default=[], help="those that a student or the backbone alone can find")
    parser.add_argument("--asr_train_config", type=Path, help="config.yaml of the training; default: beside the checkpoint")
    parser.add_argument("--backbone", help="hub name or folder; default: that of the training")
    parser.add_argument("--window", help="short, short+<seconds>s or 30s, without a training's config; default: as noted")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="for the backbone alone")
    parser.add_argument(
        "--scenarios", nargs="+", default=["aware"], choices=["aware", "agnostic"], help="is the language given? both: in turn"
    )
    parser.add_argument(
        "--config", type=Path, help="YAML with batch_seconds, beam_size, maxlenratio, length_penalty, and routing for MoLE"
    )
    parser.add_argument("--ngpu", type=int, default=0)
    return parser


def described_system(args: argparse.Namespace) -> System:
    """The system that the options describe.

    Raises:
        ValueError: neither a trained system nor a backbone is given.
        FileNotFoundError: a file is missing.
    """
    config = args.asr_train_config or (args.asr_model_file.parent / "config.yaml" if args.asr_model_file else None)
    for file in (args.asr_model_file, config):
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"expected a trained system, but {file} is not there: run stage 11")
    trained = vars(args) | (load_yaml(config) if config else {})
    trained["backbone"] = args.backbone or trained["backbone"]
    if not trained["backbone"]:
        raise ValueError("expected a system: --asr_model_file, --experts or --student with --asr_train_config, or --backbone")
    kind, adapters, langs = "whisper", None, trained["langs"]
    if args.asr_model_file:
        kind, adapters = "mole", Path(trained["experts"])
    elif args.experts:
        kind, adapters, langs = "experts", args.experts, adapters_in(args.experts)
    elif args.student:
        kind, adapters = "student", args.student
    return System(kind, trained["backbone"], tuple(langs), adapters, args.asr_model_file, trained)


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s")
    args = get_parser().parse_args(cmd)
    try:
        seconds, search, routing = read_decoding(args.config)
        transcriber = load_system(described_system(args), "cuda" if args.ngpu > 0 else "cpu", search, routing, args.resident)
        for scenario in args.scenarios:
            output = args.output_dir.with_name(f"{args.output_dir.name}_{scenario}")
            rtf = transcribe_sets(transcriber, args.test_dirs, output, scenario, seconds)
            memory = peak_memory_gb(args.ngpu > 0)
            write_resources(output, str(args.config), parameters=transcriber.num_parameters, memory_gb=memory)
            logging.info(f"{scenario}: real-time factor {rtf:.3f}; hypotheses in {output}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

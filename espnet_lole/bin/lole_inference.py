#!/usr/bin/env python3
"""Transcribe formatted test sets with a trained system, or with the backbone alone."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from espnet_lole.backbone.load import PRECISIONS, load_backbone
from espnet_lole.backbone.tokens import WhisperTokens
from espnet_lole.config import load_yaml, read_conf
from espnet_lole.decode.inference import transcribe_sets
from espnet_lole.decode.search import SearchConfig
from espnet_lole.decode.transcriber import ExpertTranscriber, MoLETranscriber, PromptTranscriber, Transcriber
from espnet_lole.experts.adapters import load_bank
from espnet_lole.router.routing import RoutingConfig


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--test_dirs", type=Path, nargs="+", required=True, help="formatted test sets, dump/raw/<set>")
    parser.add_argument("--output_dir", type=Path, required=True, help="<output_dir>_<scenario> gets a folder for each test set")
    parser.add_argument("--asr_model_file", type=Path, help="checkpoint of MoLE")
    parser.add_argument("--experts", type=Path, help="or a folder of peft adapters, one a language")
    parser.add_argument("--student", type=Path, help="or a peft adapter for all languages")
    parser.add_argument("--langs", nargs="+", default=[], help="those that a student or the backbone alone can find")
    parser.add_argument("--asr_train_config", type=Path, help="config.yaml of the training; default: beside the checkpoint")
    parser.add_argument("--backbone", help="hub name or folder; default: that of the training")
    parser.add_argument("--window", default="short", choices=["short", "30s"], help="for the backbone alone")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="for the backbone alone")
    parser.add_argument(
        "--scenarios", nargs="+", default=["aware"], choices=["aware", "agnostic"], help="is the language given? both: in turn"
    )
    parser.add_argument(
        "--config", type=Path, help="YAML with batch_seconds, beam_size, maxlenratio, length_penalty, and routing for MoLE"
    )
    parser.add_argument("--ngpu", type=int, default=0)
    return parser


def build_transcriber(
    args: argparse.Namespace, search: SearchConfig, routing: RoutingConfig
) -> tuple[Transcriber, WhisperTokens]:
    """The system that the options describe, and its tokens.

    Raises:
        ValueError: neither a checkpoint nor a backbone is given, or the checkpoint is of another backbone.
        FileNotFoundError: a file is missing.
    """
    device = "cuda" if args.ngpu > 0 else "cpu"
    config = args.asr_train_config or (args.asr_model_file.parent / "config.yaml" if args.asr_model_file else None)
    for file in (args.asr_model_file, config):
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"expected a trained system, but {file} is not there: run stage 11")
    if args.asr_model_file:
        from espnet_lole.tasks.lole import LoLETask  # ESPnet's task takes seconds to import; the others need none

        model, _ = LoLETask.build_model_from_file(config, args.asr_model_file, device)
        return MoLETranscriber(model.eval().mole, model.tokens, search, routing), model.tokens
    trained = vars(args) | (load_yaml(config) if config else {})
    if not trained["backbone"]:
        raise ValueError("expected a system: --asr_model_file, --experts or --student with --asr_train_config, or --backbone")
    backbone = load_backbone(trained["backbone"], trained["window"], trained["precision"])
    tokens = WhisperTokens(backbone.model.config.vocab_size)
    if args.experts:
        bank = load_bank(backbone.model, args.experts)
        return ExpertTranscriber(backbone.to(device).eval(), tokens, bank, search), tokens
    bank = load_bank(backbone.model, args.student.parent, [args.student.name]) if args.student else None
    return PromptTranscriber(backbone.to(device).eval(), tokens, bank, trained["langs"], search), tokens


def read_config(file: Path | None) -> tuple[float, SearchConfig, RoutingConfig]:
    """Seconds of audio of a batch, how to search and how to route, from a decoding YAML.

    Raises:
        ValueError: it is no YAML of these keys and their types.
    """
    conf = load_yaml(file) if file else {}
    seconds, routing = conf.pop("batch_seconds", 160.0), conf.pop("routing", {})
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"expected batch_seconds of {file} to be a number above 0, got {seconds!r}")
    return seconds, read_conf(SearchConfig, conf, str(file)), read_conf(RoutingConfig, routing, f"routing of {file}")


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s")
    args = get_parser().parse_args(cmd)
    try:
        seconds, search, routing = read_config(args.config)
        transcriber, tokens = build_transcriber(args, search, routing)
        for scenario in args.scenarios:
            output = args.output_dir.with_name(f"{args.output_dir.name}_{scenario}")
            rtf = transcribe_sets(transcriber, tokens, args.test_dirs, output, scenario, seconds)
            logging.info(f"{scenario}: real-time factor {rtf:.3f}; hypotheses in {output}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

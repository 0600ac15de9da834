#!/usr/bin/env python3
"""Transcribe formatted test sets, or a job's share of them, with a trained system or the backbone alone."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from espnet_lole.evaluation.decodings import DECODING, TRAINING, describe_decoding, write_decoding
from espnet_lole.evaluation.resources import RESOURCES, peak_memory_gb, write_resources
from espnet_lole.inference.load import (
    Decoding,
    SystemFolder,
    find_system,
    load_transcriber,
    read_decoding_config,
    write_decoding_config,
)
from espnet_lole.inference.pieces import job_folder, output_folder, write_pieces, write_sets
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.test_sets import transcribe_sets
from espnet_lole.inference.transcriber import Transcriber
from espnet_lole.lole.peft_files import CONFIG, WEIGHTS
from espnet_lole.ownership import check_output_file
from espnet_lole.whisper.checkpoint import weight_files

DECODING_OPTIONS = ("batch_seconds", *(field.name for field in fields(SearchConfig)))


def get_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    system = parser.add_mutually_exclusive_group(required=True)
    system.add_argument("--model", type=Path, help="folder of a training, an export, or peft adapters")
    system.add_argument("--backbone", help="or hub name or folder of a Whisper that is decoded without adapters")
    parser.add_argument("--langs", nargs="+", help="languages to choose from; default: those of the training")
    parser.add_argument("--test_dirs", type=Path, nargs="+", required=True, help="formatted test sets, dump/raw/<set>")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="<output_dir>_<scenario> gets a folder per test set"
    )
    parser.add_argument(
        "--scenarios",
        nargs="+",
        default=["aware"],
        choices=["aware", "agnostic"],
        help="whether the language of an utterance is given; default: aware",
    )
    parser.add_argument("--config", type=Path, help="YAML of the decoding, such as conf/decode.yaml")
    for name in DECODING_OPTIONS:
        parser.add_argument(f"--{name}", type=yaml.safe_load, help="overrides the value of --config")
    parser.add_argument(
        "--max_loaded_experts", type=int, help="experts in memory, the others stay on disk; default: all"
    )
    parser.add_argument(
        "--share", type=parse_share, default=(1, 1), help="2/4: decode the second of four shares, for lole_join"
    )
    parser.add_argument("--ngpu", type=int, default=0, help="1: decode on a GPU; default: 0")
    return parser


def parse_share(text: str) -> tuple[int, int]:
    """Read the number of a job, from 1, and of jobs.

    Raises:
        argparse.ArgumentTypeError: they are no such numbers.
    """
    numbers = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not numbers or int(numbers[1]) > int(numbers[2]):
        raise argparse.ArgumentTypeError(f"expected a job and the number of jobs, such as 2/4, got {text!r}")
    return int(numbers[1]), int(numbers[2])


def find_finished(folder: Path, languages: Sequence[str] | None) -> SystemFolder:
    """Find the system in a folder, whose training has ended.

    Raises:
        FileNotFoundError: the folder or a part of the system is missing, or its training goes on to more epochs.
        ValueError: it holds no system.
    """
    system = find_system(folder, languages=languages)
    if (folder / TRAINING).is_file() and not (folder / RESOURCES).is_file():
        raise FileNotFoundError(f"the system in {folder} is not trained to its end: run stage 11 again")
    return system


def files_of_weights(system: SystemFolder) -> list[Path]:
    """List the files that a system is loaded from."""
    adapters = [folder / name for folder in system.adapter_folders().values() for name in (WEIGHTS, CONFIG)]
    return [*weight_files(system.backbone), *adapters, *([system.mole_weights] if system.mole_weights else [])]


def decode(
    args: argparse.Namespace, transcriber: Transcriber, decoding: Decoding, record: dict[str, Any], scenario: str
) -> None:
    """Transcribe in a scenario, and write the hypotheses, the options, the resources and, at the end, the record."""
    job, jobs = args.share
    output = output_folder(args.output_dir, scenario) if jobs == 1 else job_folder(args.output_dir, scenario, job)
    (output / DECODING).unlink(missing_ok=True)  # hypotheses of two decodings are not scored as one
    decoded = transcribe_sets(transcriber, args.test_dirs, scenario, decoding.batch_seconds, job, jobs)
    if jobs == 1:
        rtf = write_sets(output, [decoded])
        logging.info(f"{scenario}: real-time factor {rtf:.3f}; hypotheses in {output}")
    else:
        write_pieces(output, decoded)
    write_decoding_config(output, decoding)
    memory = peak_memory_gb(args.ngpu > 0)
    write_resources(output, str(args.config), parameters=transcriber.num_parameters, memory_gb=memory)
    write_decoding(output, record)


def main(cmd: list[str] | None = None) -> None:
    """Transcribe the test sets in each scenario."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s")
    args = get_parser().parse_args(cmd)
    options = {name: getattr(args, name) for name in DECODING_OPTIONS if getattr(args, name) is not None}
    try:
        for folder in (output_folder(args.output_dir, scenario) for scenario in args.scenarios):
            for test_dir in args.test_dirs:  # an earlier decoding may be replaced
                check_output_file(folder / test_dir.name / "text", overwrite=(folder / test_dir.name / "rtf").is_file())
        decoding = read_decoding_config(args.config, options)
        if args.model:
            system = find_finished(args.model, args.langs)
        else:
            system = SystemFolder("zero_shot", Path(args.backbone), args.backbone, tuple(args.langs or ()))
        device = "cuda" if args.ngpu > 0 else "cpu"
        transcriber = load_transcriber(system, device, decoding.search, decoding.routing, args.max_loaded_experts)
        record = describe_decoding(files_of_weights(system), args.test_dirs)
        for scenario in args.scenarios:
            decode(args, transcriber, decoding, record, scenario)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

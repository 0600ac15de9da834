"""Estimate what trainings need before they start: parameters, GPU memory, checkpoints, operations.

Examples:
  lole plan conf/train_experts.yaml conf/train_mole.yaml --gpus 8
  lole plan conf/train_experts.yaml --backbone openai/whisper-large-v3 --train_args --precision bfloat16
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

GIB = 2**30
ROWS = (
    "",
    "trained parameters",
    "frozen parameters",
    "batch of a GPU",
    "weights, GiB",
    "gradients, GiB",
    "optimizer, GiB",
    "activations, GiB",
    "memory of a GPU, GiB",
    "a model on disk, GiB",
    "checkpoint.pth, GiB",
    "a step on a GPU, TFLOP",
)
LANGUAGES = ("de", "en", "es", "fr", "it", "pt", "ru", "zh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="training configurations")
    parser.add_argument("--gpus", type=int, default=8, help="number of processes that share a batch (default: 8)")
    parser.add_argument("--langs", nargs="+", default=LANGUAGES, help="languages, one expert each (default: eight)")
    parser.add_argument("--backbone", help="published name, folder or .pt file (default: that of the configuration)")
    parser.add_argument(
        "--expert_rank", type=int, default=64, help="rank of the experts of MoLE and a student (default: 64)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of an utterance (default: 10)")
    parser.add_argument("--tokens_per_second", type=float, default=4.0, help="rate of the texts (default: 4)")
    parser.add_argument(
        "--train_args", nargs=argparse.REMAINDER, default=[], help="options of the training; must come last"
    )


def run(args: argparse.Namespace) -> None:
    """Print a table with one column per configuration.

    Raises:
        ValueError: a configuration is wrong, or its system or optimizer cannot be estimated.
        OSError: the backbone is missing.
    """
    columns = [ROWS, *(_estimate(args, config) for config in args.configs)]
    print(format_table(list(zip(*columns, strict=True))))


def _estimate(args: argparse.Namespace, config: Path) -> list[str]:
    """Estimate the needs of one configuration, train_<system>.yaml: its column of the table."""
    from espnet_lole.config import config_files
    from espnet_lole.estimate import Workload, build_empty, measure
    from espnet_lole.systems import base_system
    from espnet_lole.tasks.lole import LoLETask

    options = ["--system", base_system(config.stem.partition("_")[2]), "--output_dir", "-", "--langs", *args.langs]
    if args.backbone:
        options += ["--backbone", args.backbone]
    train = LoLETask.parse_args(["--config", *map(str, config_files(config)), *options, *args.train_args])
    work = Workload.share(train.batch_bins, args.gpus, args.seconds, args.tokens_per_second)
    needs = measure(train, build_empty(train, args.expert_rank), work)
    head = [config.stem, f"{needs.trained:,}", f"{needs.frozen:,}", f"{work.utterances} x {work.seconds:g} s"]
    memory = (needs.weights, needs.gradients, needs.optimizer, needs.activations, needs.memory)
    sizes = (*memory, needs.model_file, needs.checkpoint)
    return [*head, *(f"{size / GIB:.2f}" for size in sizes), f"{needs.flops / 1e12:.2f}"]


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows in columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)

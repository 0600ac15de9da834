#!/usr/bin/env python3
"""Say what trainings will need, before they are started: parameters, memory of a GPU, checkpoints, operations.

Examples:
  lole plan conf/train_experts.yaml conf/train_mole.yaml --gpus 8
  lole plan conf/train_experts.yaml --backbone openai/whisper-large-v3 --train_args --precision bfloat16 --checkpointing true
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

GIB = 2**30
ROWS = ["", "trained parameters", "frozen parameters", "batch of a GPU"]
ROWS += ["weights, GiB", "gradients, GiB", "optimizer, GiB", "activations, GiB", "memory of a GPU, GiB"]
ROWS += ["a model on disk, GiB", "checkpoint.pth, GiB", "a step on a GPU, TFLOP"]
LANGUAGES = ["de", "en", "es", "fr", "it", "pt", "ru", "zh"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="training configurations")
    parser.add_argument("--gpus", type=int, default=8, help="processes that share a batch (default: 8)")
    parser.add_argument("--langs", nargs="+", default=LANGUAGES, help="languages, an expert each (default: eight)")
    parser.add_argument("--backbone", help="a published name, a folder or a .pt file (default: the configuration's)")
    parser.add_argument("--expert_rank", type=int, default=64, help="of the experts that MoLE and the student need (default: 64)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of an utterance (default: 10)")
    parser.add_argument("--tokens_per_second", type=float, default=4.0, help="of the texts (default: 4)")
    parser.add_argument("--train_args", nargs=argparse.REMAINDER, default=[], help="last: options of the training")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return parser


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first at the left, the others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def run(args: argparse.Namespace) -> None:
    """Print a table with a column for each configuration.

    Raises:
        ValueError: a configuration does not fit, or its system or optimizer cannot be planned.
        OSError: the backbone is nowhere.
    """
    from espnet_lole.tasks.lole import LoLETask
    from espnet_lole.train.estimate import Workload, build_empty, measure

    columns = [ROWS]
    for config in args.configs:
        options = ["--config", str(config), "--langs", *args.langs, "--output_dir", "-", *args.train_args]
        train = LoLETask.get_parser().parse_args([*options, *(["--backbone", args.backbone] if args.backbone else [])])
        work = Workload.share(train.batch_bins, args.gpus, args.seconds, args.tokens_per_second)
        needs = measure(train, build_empty(train, args.expert_rank), work)
        sizes = [needs.weights, needs.gradients, needs.optimizer, needs.activations, needs.memory]
        sizes += [needs.model_file, needs.checkpoint]
        head = [config.stem, f"{needs.trained:,}", f"{needs.frozen:,}", f"{work.utterances} x {work.seconds:g} s"]
        columns.append([*head, *(f"{size / GIB:.2f}" for size in sizes), f"{needs.flops / 1e12:.2f}"])
    print(table(list(zip(*columns, strict=True))))


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    try:
        run(get_parser().parse_args(cmd))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

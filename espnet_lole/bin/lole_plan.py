#!/usr/bin/env python3
"""Say what trainings will need, before they are started: parameters, memory of a GPU, checkpoints, operations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

GIB = 2**30
LANGUAGES = ["de", "en", "es", "fr", "it", "pt", "ru", "zh"]


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="training configurations")
    parser.add_argument("--gpus", type=int, default=8, help="processes that share a batch")
    parser.add_argument("--langs", nargs="+", default=LANGUAGES, help="languages, an expert each")
    parser.add_argument("--backbone", help="a published name, a folder or a .pt file; default: that of the configuration")
    parser.add_argument("--expert_rank", type=int, default=64, help="of the experts that MoLE and the student need")
    parser.add_argument("--seconds", type=float, default=10.0, help="of an utterance")
    parser.add_argument("--tokens_per_second", type=float, default=4.0, help="of the texts")
    parser.add_argument("--train_args", nargs=argparse.REMAINDER, default=[], help="last: options of the training")
    return parser


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first at the left, the others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def main(cmd: list[str] | None = None) -> None:
    """Print a table with a column for each configuration."""
    args = get_parser().parse_args(cmd)
    from espnet_lole.plan import Workload, build_empty, measure
    from espnet_lole.tasks.lole import LoLETask

    columns = [["", "trained parameters", "frozen parameters", "batch of a GPU"]]
    columns[0] += ["weights, GiB", "gradients, GiB", "optimizer, GiB", "activations, GiB", "memory of a GPU, GiB"]
    columns[0] += ["a model on disk, GiB", "checkpoint.pth, GiB", "a step on a GPU, TFLOP"]
    try:
        for config in args.configs:
            options = ["--config", str(config), "--langs", *args.langs, "--output_dir", "-", *args.train_args]
            train = LoLETask.get_parser().parse_args([*options, *(["--backbone", args.backbone] if args.backbone else [])])
            work = Workload.share(train.batch_bins, args.gpus, args.seconds, args.tokens_per_second)
            needs = measure(train, build_empty(train, args.expert_rank), work)
            sizes = (needs.weights, needs.gradients, needs.optimizer, needs.activations, needs.memory, needs.model_file)
            columns.append(
                [config.stem, f"{needs.trained:,}", f"{needs.frozen:,}", f"{work.utterances} x {work.seconds:g} s"]
                + [f"{size / GIB:.2f}" for size in (*sizes, needs.checkpoint)]
                + [f"{needs.flops / 1e12:.2f}"]
            )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table(list(zip(*columns, strict=True))))


if __name__ == "__main__":
    main()

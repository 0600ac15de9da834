#!/usr/bin/env python3
"""Find the trained language that a new language sounds most like: the mean posterior of MoLE's classifier on its speech."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from espnet_lole.atomic_io import write_whole
from espnet_lole.inference.longform import make_batches
from espnet_lole.inference.test_sets import read_items
from espnet_lole.inference.transcriber import pad_speech


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mole", type=Path, required=True, help="checkpoint of MoLE; its config.yaml is beside it")
    parser.add_argument("--data", type=Path, required=True, help="formatted set of the new language, dump/raw/<set>")
    parser.add_argument("--output", type=Path, required=True, help="gets a line a language: its code and mean posterior")
    parser.add_argument("--batch_seconds", type=float, default=160.0, help="audio of a batch, padding included")
    return parser


@torch.no_grad()
def main(cmd: list[str] | None = None) -> None:
    """Write the languages, the likeliest first, and their mean posteriors."""
    args = get_parser().parse_args(cmd)
    from espnet_lole.tasks.lole import LoLETask

    try:
        model, _ = LoLETask.build_model_from_file(None, args.mole)
        model.eval()
        model.mole.merge()
        total = torch.zeros(len(model.bank.languages))
        items = read_items(args.data)
        for rows in make_batches([model.backbone.input_samples(item.samples) for item in items], args.batch_seconds):
            speech = [items[row].read() for row in rows]
            total += model.classifier(model.mole.shallow(*pad_speech(speech, model.backbone))).softmax(-1).sum(0)
        mean = total / max(len(items), 1)
        order = mean.argsort(descending=True).tolist()
        write_whole(args.output, "".join(f"{model.bank.languages[i]} {mean[i]:.4f}\n" for i in order))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Draw the fusion weights of a trained MoLE and the confusion of its languages."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from espnet_lole.score.figures import draw_confusion, draw_fusion
from espnet_lole.score.rates import read_confusion


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mole", type=Path, required=True, help="checkpoint of MoLE; its config.yaml is beside it")
    parser.add_argument("--decoded", type=Path, required=True, help="its language-agnostic decoding, with a folder a test set")
    parser.add_argument("--dumpdir", type=Path, required=True, help="holds <test_set>/utt2lang")
    parser.add_argument("--test_sets", required=True, help="names of the test sets, with spaces between them")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets fusion_weights.png and lid_confusion.png")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    from espnet_lole.tasks.lole import LoLETask

    try:
        confusion: dict[str, Counter[str]] = {}
        for name in args.test_sets.split():
            for lang, found in read_confusion(args.decoded / name / "lang", args.dumpdir / name / "utt2lang").items():
                confusion.setdefault(lang, Counter()).update(found)
        model, _ = LoLETask.build_model_from_file(None, args.mole)
        draw_confusion(confusion, args.output_dir / "lid_confusion.png")
        if model.fusion.groups:
            weights = model.fusion.weights().detach().numpy()
            draw_fusion(weights, model.fusion.groups, model.bank.languages, args.output_dir / "fusion_weights.png")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"pictures in {args.output_dir}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Rank the trained languages by their mean posterior from MoLE's classifier on speech of a new language."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.inference.batching import load_batches
from espnet_lole.inference.load import find_system, load_transcriber
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.test_sets import read_test_set
from espnet_lole.inference.transcriber import MoLETranscriber
from espnet_lole.lole.mole import MoLE, RoutingConfig
from espnet_lole.ownership import check_output_file

FORMAT = re.compile(r"(\w+ \d\.\d{4}\n)+")
"""What the output looks like."""


def get_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained MoLE")
    parser.add_argument("--data", type=Path, required=True, help="formatted set of the new language, dump/raw/<set>")
    parser.add_argument(
        "--output", type=Path, required=True, help="file that gets a line per language: code and mean posterior"
    )
    parser.add_argument(
        "--batch_seconds", type=float, default=160.0, help="audio of a batch, padding included; default: 160"
    )
    return parser


@torch.no_grad()
def mean_posteriors(mole: MoLE, folder: Path, batch_seconds: float) -> dict[str, float]:
    """Average the classifier's posteriors over the utterances of a formatted set; the likeliest language first."""
    audio = [piece for utterance in read_test_set(folder) for piece in utterance.pieces()]
    total = torch.zeros(len(mole.experts.languages))
    for _, speech, lengths in load_batches(audio, mole.experts.whisper, batch_seconds):
        _, _, logits = mole.frontend(mole.experts.whisper.embed_speech(speech, lengths))
        total += logits.softmax(-1).sum(0)
    mean = total / max(len(audio), 1)
    return {mole.experts.languages[i]: float(mean[i]) for i in mean.argsort(descending=True).tolist()}


def main(cmd: list[str] | None = None) -> None:
    """Write the languages and their mean posteriors."""
    args = get_parser().parse_args(cmd)
    try:
        known = args.output.is_file() and FORMAT.fullmatch(args.output.read_text(encoding="utf-8", errors="replace"))
        check_output_file(args.output, overwrite=bool(known))
        transcriber = load_transcriber(find_system(args.model), "cpu", SearchConfig(), RoutingConfig())
        if not isinstance(transcriber, MoLETranscriber):
            raise ValueError(f"{args.model} holds no MoLE, and only MoLE has a language classifier")
        posteriors = mean_posteriors(transcriber.mole, args.data, args.batch_seconds)
        write_text_atomic(args.output, "".join(f"{lang} {posterior:.4f}\n" for lang, posterior in posteriors.items()))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

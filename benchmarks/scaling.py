"""How the time of a step grows with languages, rank, batch and length; and the start of each command."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Outcome, Size, Work
from benchmarks.systems import TOKENIZER, decoding_experts, utterances
from benchmarks.training import experts_step

COMMANDS = Path(__file__).resolve().parents[1] / "espnet_lole" / "bin"
CURVE_RANK = 8
"""Rank of the experts on the curve of languages: 256 of rank 64 would not fit into the memory of most machines."""
TRAINABLE = 99
"""Whisper's languages, the most that can train."""


def start_up(size: Size) -> Outcome:
    """Measure how long each command takes to print its options, against importing torch."""
    commands = {
        file.stem: ["-m", f"espnet_lole.bin.{file.stem}", "--help"] for file in sorted(COMMANDS.glob("lole_*.py"))
    }
    commands["lole transcribe"] = ["-m", "espnet_lole.cli.main", "transcribe", "--help"]
    commands["import torch"] = ["-c", "import torch"]
    out = Outcome()
    run = partial(subprocess.run, check=True, capture_output=True)
    out.race(
        "start_up", {name: partial(run, [sys.executable, *c]) for name, c in commands.items()}, min(size.repeats, 3)
    )
    for name in list(commands)[:-1]:
        out.compare("start_up", name, "import torch")
    return out


def decoder_step(
    size: Size,
    languages: int = 8,
    rank: int | None = None,
    count: int | None = None,
    seconds: float | None = None,
) -> Work:
    """A cached step of the decoder for a batch in which languages alternate."""
    experts, count = decoding_experts(size, languages, rank), count or size.decode_batch
    index = torch.arange(count) % languages
    token = torch.full((count, 1), TOKENIZER.sot, device=size.device)
    with torch.no_grad(), experts.activate(index):
        encoded = experts.whisper.encode(*utterances(size, count, seconds))

    @torch.no_grad()
    def work() -> None:
        with experts.activate(index):
            experts.whisper.logits(experts.whisper.decode(token, encoded, experts.whisper.new_cache()))

    return work


def scaling(size: Size) -> Outcome:
    """Measure curves of a training step and of a decoding step."""
    out = Outcome()
    curves = {
        "languages": [(n, {"languages": n, "rank": min(CURVE_RANK, size.rank)}) for n in size.languages],
        "rank": [(n, {"rank": n}) for n in size.ranks],
        "batch": [(n, {"count": n}) for n in size.batches],
        "seconds": [(n, {"seconds": n}) for n in size.lengths],
    }
    for axis, points in curves.items():
        for point, options in points:
            works = {"decode step": decoder_step(size, **options)}
            if options.get("languages", 1) <= TRAINABLE:
                works["train step"] = experts_step(size, **options)
            out.race("scaling", works, min(size.repeats, 3), axis, point)
    return out

"""How the cost grows: with languages, rank, batch and length; the student's start; the start of each command."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Outcome, Size, Work, alternate
from benchmarks.systems import START, ours, utterances
from benchmarks.training import experts_step
from espnet_lole.lole.kd_init import truncated_average

COMMANDS = Path(__file__).resolve().parents[1] / "espnet_lole" / "bin"
START_SHAPE = {"experts": 8, "in_dim": 1024, "out_dim": 4096, "rank": 64, "kept": 256}
CURVE_RANK = 8
"""Rank of the experts on the curve of languages: 256 of rank 64 would not fit into the memory of most machines."""


def student_start(size: Size) -> Outcome:
    """The truncated average of experts against the full SVD of their average."""
    shape = {name: max(2, value // (1 if size.width > 100 else 16)) for name, value in START_SHAPE.items()}
    torch.manual_seed(0)
    a = torch.randn(shape["experts"], shape["rank"], shape["in_dim"], device=size.device)
    b = torch.randn(shape["experts"], shape["out_dim"], shape["rank"], device=size.device)
    weights = torch.full((shape["experts"],), 1 / shape["experts"], device=size.device)

    def full() -> None:
        u, s, vh = torch.linalg.svd(torch.einsum("e,eor,erd->od", weights, b, a), full_matrices=False)
        _ = (u * s.sqrt())[:, : shape["kept"]], (s.sqrt()[:, None] * vh)[: shape["kept"]]

    out = Outcome()
    parts = {"truncated average": partial(truncated_average, a, b, weights, shape["kept"]), "full SVD": full}
    out.race("student_start", parts, size.repeats)
    out.claim("student_start", *parts, ">= 5")
    return out


def start_up(size: Size) -> Outcome:
    """Seconds until each command has read its options, against those of importing torch and transformers' Whisper."""
    python = [sys.executable, "-m"]
    commands = {
        file.stem: [*python, f"espnet_lole.bin.{file.stem}", "--help"] for file in sorted(COMMANDS.glob("lole_*.py"))
    }
    commands["import torch"] = [sys.executable, "-c", "import torch"]
    parts = {name: partial(subprocess.run, call, check=True, capture_output=True) for name, call in commands.items()}
    out = Outcome()
    out.race("start_up", parts, min(size.repeats, 3))
    for name in commands:
        if name != "import torch":
            out.claim("start_up", name, "import torch")
    return out


def decoder_step(
    size: Size, languages: int = 8, rank: int | None = None, count: int | None = None, seconds: float | None = None
) -> Work:
    """A cached step of the decoder of a batch in which languages come in turn."""
    backbone, bank = ours(size, languages, rank)
    count = count or size.decode_batch
    index = torch.arange(count, device=size.device) % languages
    token = torch.full((count, 1), START, device=size.device)
    with torch.no_grad(), bank.routed(index):
        encoded = backbone.encode(*utterances(size, count, seconds))

    @torch.no_grad()
    def work() -> None:
        with bank.routed_steps(index):
            backbone.logits(backbone.decode(token, encoded, backbone.new_cache()))

    return work


def scaling(size: Size) -> Outcome:
    """Curves of a training step and of a decoding step."""
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
            if axis != "languages" or point <= 99:  # Whisper has 99 languages to train
                works["train step"] = experts_step(size, **options)
            for name, seconds in alternate(works, min(size.repeats, 3)).items():
                out.add("scaling", name, "ms", [1000 * s for s in seconds], axis, point)
    return out

"""Run benchmarks: ``python -m benchmarks [NAME ...] [--quick]``."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import decoding, limits, scaling, training
from benchmarks.harness import QUICK, WHISPER_BASE, WHISPER_MEDIUM, Outcome, Size
from benchmarks.report import machine, update

BENCHMARKS: dict[str, Callable[[Size], Outcome]] = {
    "train_step": training.train_step,
    "kd_step": training.kd_step,
    "decode_step": decoding.decode_step,
    "encode": decoding.encode,
    "whole_decode": decoding.whole_decode,
    "merged_student": decoding.merged_student,
    "mole": decoding.mole,
    "student_start": scaling.student_start,
    "start_up": scaling.start_up,
    "limits": limits.limits,
    "scaling": scaling.scaling,
}

ON_CPU = ("start_up", "scaling")
"""Benchmarks that ``--gpu`` runs only when they are named."""


def main(cmd: list[str] | None = None) -> None:
    """Each benchmark in a new process, or all in this one on a GPU, the outcome of each written when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {' '.join(BENCHMARKS)}; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny size: shows that all runs, its figures mean nothing"
    )
    parser.add_argument("--gpu", action="store_true", help="on a GPU, Whisper-medium in bfloat16")
    parser.add_argument(
        "--output_dir", type=Path, help="gets results.csv and the page; default: benchmarks/, or its gpu/"
    )
    args = parser.parse_args(cmd)
    if unknown := sorted(set(args.names) - set(BENCHMARKS)):
        parser.error(f"expected benchmarks of {' '.join(BENCHMARKS)}, got {unknown}")
    if args.gpu and not torch.cuda.is_available():
        parser.error("expected a GPU for --gpu, but PyTorch sees none: leave it out to time the processor")
    size = WHISPER_MEDIUM if args.gpu else WHISPER_BASE
    if args.quick:
        size = replace(QUICK, device=size.device, precision=size.precision)
    folder = args.output_dir or Path(__file__).parent / ("gpu" if args.gpu else "")
    folder.mkdir(exist_ok=True)
    about = (
        f"Whisper of {size.layers} + {size.layers} layers of width {size.width}, rank {size.rank} on all linears, "
        f"products in {str(size.precision).removeprefix('torch.')}; {machine(args.gpu)}."
    )
    names = args.names or [name for name in BENCHMARKS if not (args.gpu and name in ON_CPU)]
    for name in names:
        if args.gpu:
            outcome = BENCHMARKS[name](size)
        else:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                outcome = pool.submit(BENCHMARKS[name], size).result()
        update(folder, name, outcome, about, "make bench-gpu" if args.gpu else "make bench")
        for claim in outcome.claims:
            told = f"{claim.ours:.4g} / {claim.peer:.4g} {claim.unit}, {claim.ratio:.3g} {claim.bar} {claim.holds}"
            print(f"{claim.benchmark}: {told}")


if __name__ == "__main__":
    main()

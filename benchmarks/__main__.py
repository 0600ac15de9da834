"""Run benchmarks: ``python -m benchmarks [NAME ...] [--quick]``."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks import decoding, scaling, training
from benchmarks.harness import QUICK, WHISPER_BASE, Outcome, Size
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
    "scaling": scaling.scaling,
}


def main(cmd: list[str] | None = None) -> None:
    """Each benchmark in a new process, its outcome written when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {' '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a tiny size: shows that all runs, its figures mean nothing")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent, help="gets results.csv and the page")
    args = parser.parse_args(cmd)
    if unknown := sorted(set(args.names) - set(BENCHMARKS)):
        parser.error(f"expected benchmarks of {' '.join(BENCHMARKS)}, got {unknown}")
    size = QUICK if args.quick else WHISPER_BASE
    about = (
        f"Whisper of {size.layers} + {size.layers} layers of width {size.width}, rank {size.rank} on all linears; {machine()}."
    )
    for name in args.names or BENCHMARKS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            outcome = pool.submit(BENCHMARKS[name], size).result()
        update(args.output_dir, name, outcome, about)
        for claim in outcome.claims:
            told = f"{claim.ours:.4g} / {claim.peer:.4g} {claim.unit}, {claim.ratio:.3g} {claim.bar} {claim.holds}"
            print(f"{claim.benchmark}: {told}")


if __name__ == "__main__":
    main()

"""Run benchmarks: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import decoding, fast_paths, limits, scaling, training
from benchmarks.harness import SIZES, Outcome, Size
from benchmarks.report import describe_machine, update

BENCHMARKS: dict[str, Callable[[Size], Outcome]] = {
    "train_step": training.train_step,
    "kd_step": training.kd_step,
    "decode_step": decoding.decode_step,
    "encode": decoding.encode,
    "whole_decode": decoding.whole_decode,
    "merged_student": decoding.merged_student,
    "mole": decoding.mole,
    "fast_paths": fast_paths.fast_paths,
    "systems": training.systems,
    "start_up": scaling.start_up,
    "limits": limits.limits,
    "scaling": scaling.scaling,
}
ON_CPU = ("start_up", "merged_student", "scaling")
"""Benchmarks that ``--gpu`` runs only when they are named."""


def get_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {' '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--gpu", action="store_true", help="on a GPU, in bfloat16, Whisper-medium by default")
    parser.add_argument("--size", choices=SIZES, help="of the Whisper; default: base; quick only shows that all run")
    parser.add_argument("--train_batch", type=int, help="utterances of a training step")
    parser.add_argument("--repeats", type=int, help="timed rounds")
    parser.add_argument(
        "--output_dir", type=Path, help="gets the tables and the page; default: benchmarks/ or benchmarks/gpu/"
    )
    return parser


def get_size(args: argparse.Namespace) -> Size:
    """Return the size that the options select."""
    size = SIZES[args.size or ("medium" if args.gpu else "base")]
    given = {name: getattr(args, name) for name in ("train_batch", "repeats") if getattr(args, name)}
    return replace(size, **given, **({"device": "cuda", "precision": torch.bfloat16} if args.gpu else {}))


def main(cmd: list[str] | None = None) -> None:
    """Run benchmarks and write the outcome of each when it is done."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    if unknown := sorted(set(args.names) - set(BENCHMARKS)):
        parser.error(f"there is no benchmark {unknown[0]}: choose from {' '.join(BENCHMARKS)}")
    if args.gpu and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU: leave out --gpu to time the processor")
    size = get_size(args)
    folder = args.output_dir or Path(__file__).parent / ("gpu" if args.gpu else "")
    folder.mkdir(exist_ok=True)
    about = (
        f"Made by `make {'bench-gpu' if args.gpu else 'bench'}`. Whisper of {size.layers} + {size.layers} layers of "
        f"width {size.width}, rank {size.rank} on all linears, {str(size.precision).removeprefix('torch.')}; "
        f"{describe_machine(size.device)}."
    )
    for name in args.names or [name for name in BENCHMARKS if not (args.gpu and name in ON_CPU)]:
        outcome = run(name, size)
        update(folder, name, outcome, about)
        for row in (comparison.row() for comparison in outcome.comparisons):
            print("{benchmark}: {ours} / {alternative} {ratio:.3g} ({low:.3g} to {high:.3g})".format(**row))


def run(name: str, size: Size) -> Outcome:
    """Run a benchmark, on a CPU in a process of its own."""
    if size.device == "cuda":
        return BENCHMARKS[name](size)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(BENCHMARKS[name], size).result()


if __name__ == "__main__":
    main()

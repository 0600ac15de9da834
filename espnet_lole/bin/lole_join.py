#!/usr/bin/env python3
"""Join what the jobs of a decoding, ``lole_inference --share 1/N`` to ``N/N``, have written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.evaluation.decodings import DECODING
from espnet_lole.evaluation.resources import read_resources, write_resources
from espnet_lole.inference.pieces import job_folder, output_folder, read_pieces, write_sets
from espnet_lole.systems import SCORED_DECODING

COMMON = (SCORED_DECODING, DECODING)
"""Files that are the same in the folders of all jobs: the options, and the record of weights and test sets."""


def get_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="as given to the jobs")
    parser.add_argument("--scenarios", nargs="+", required=True, help="as given to the jobs")
    parser.add_argument("--jobs", type=int, required=True, help="number of jobs")
    return parser


def check_jobs(folders: list[Path]) -> None:
    """Check that all jobs have ended and decoded the same test sets with the same system and options.

    Raises:
        FileNotFoundError: a job has not ended.
        ValueError: a job differs from the first.
    """
    for folder in folders:
        for name in COMMON:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is not there: this job has not ended; run stage 12 again")
            if (folder / name).read_bytes() != (folders[0] / name).read_bytes():
                raise ValueError(f"{folders[0]} and {folder} are of different decodings: run stage 12 again")


def join(folders: list[Path], output: Path) -> float:
    """Write the folder of a decoding from those of its jobs; memory is the maximum of the jobs.

    Returns:
        The real-time factor.
    """
    decoded = [read_pieces(folder) for folder in folders]
    resources = [read_resources(folder) for folder in folders]
    (output / DECODING).unlink(missing_ok=True)  # hypotheses of two decodings are not scored as one
    rtf = write_sets(output, decoded)
    memory = max(each["memory_gb"] for each in resources)
    write_resources(output, resources[0]["config"], parameters=resources[0]["parameters"], memory_gb=memory)
    for name in COMMON:
        write_text_atomic(output / name, (folders[0] / name).read_text(encoding="utf-8"))
    return rtf


def main(cmd: list[str] | None = None) -> None:
    """Join the jobs in each scenario."""
    args = get_parser().parse_args(cmd)
    jobs = range(1, args.jobs + 1)
    try:
        folders = {scenario: [job_folder(args.output_dir, scenario, j) for j in jobs] for scenario in args.scenarios}
        check_jobs([folder for of_scenario in folders.values() for folder in of_scenario])
        for scenario, of_scenario in folders.items():
            join(of_scenario, output_folder(args.output_dir, scenario))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

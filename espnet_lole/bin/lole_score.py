"""Score decoded test sets, and write RESULTS.md, results.csv and the decoding options of each trained system."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.evaluation.decodings import check_decoding, seeds_of_other_trainings
from espnet_lole.evaluation.report import TITLE, results_md, summary_table, write_result_txt
from espnet_lole.evaluation.results import Decoded, Row, csv_rows, update_csv, write_csv
from espnet_lole.ownership import check_output_file
from espnet_lole.systems import SCORED_DECODING


def get_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expdir", type=Path, required=True, help="gets RESULTS.md and results.csv")
    parser.add_argument("--dumpdir", type=Path, required=True, help="holds <test_set>/{text,utt2lang}")
    parser.add_argument(
        "--decoded", action="append", required=True, help="system:scenario:decode_dir; repeat for each system"
    )
    parser.add_argument("--test_sets", required=True, help="names of the test sets, separated by spaces")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training, a column of results.csv")
    parser.add_argument("--command", help="the user's command, for RESULTS.md; default: this command")
    return parser


def score(args: argparse.Namespace, command: str) -> str:
    """Score every system, write all files, and return the summary table.

    Raises:
        ValueError: an option or a file is not as expected, or a decoding is not of the present systems and test sets.
        OSError: a file cannot be read or written.
    """
    decoded, test_sets = [Decoded.parse(text) for text in args.decoded], args.test_sets.split()
    for option, names in (("--decoded", [":".join(d.key) for d in decoded]), ("--test_sets", test_sets)):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected different names in {option}, got {' '.join(names) or 'none'}")
    report = args.expdir / "RESULTS.md"
    check_output_file(report, overwrite=report.is_file() and report.read_text(encoding="utf-8").startswith(TITLE))
    for d in decoded:
        check_decoding(d.decode_dir, args.dumpdir, test_sets)
    scores = [d.score(args.dumpdir, test_sets) for d in decoded]
    rows = [csv_rows(s, args.seed) for s in scores]
    for s, new in zip(scores, rows, strict=True):
        write_result_txt(s)
        write_csv(s.decoded.decode_dir / "results.csv", new)
        _keep_decoding(s.decoded.decode_dir)
    merged = _without_other_trainings(update_csv(args.expdir / "results.csv", sum(rows, [])), decoded)
    write_text_atomic(report, results_md(scores, merged, command))
    return summary_table(scores, merged)


def _without_other_trainings(rows: list[Row], decoded: Sequence[Decoded]) -> list[Row]:
    """Leave out the rows of other seeds that were trained on other data or with other options, and say so."""
    for d in decoded:
        for seed, changed in seeds_of_other_trainings(d.decode_dir.parent).items():
            print(f"{' '.join(d.key)}: seed {seed} is left out of RESULTS.md: {'; '.join(changed)}", file=sys.stderr)
            rows = [row for row in rows if (row["system"], row["scenario"], row["seed"]) != (*d.key, seed)]
    return rows


def _keep_decoding(decode_dir: Path) -> None:
    """Copy the options of a decoding into the folder of its system, where they are the default from now on."""
    options, system = decode_dir / SCORED_DECODING, decode_dir.parent
    if options.is_file() and (system / "config.yaml").is_file():
        shutil.copyfile(options, system / SCORED_DECODING)


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    command = shlex.join(["python", "-m", "espnet_lole.bin.lole_score", *(sys.argv[1:] if cmd is None else cmd)])
    try:
        print(score(args, args.command or command), end="")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

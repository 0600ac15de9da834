"""Score decoded test sets and write RESULTS.md and results.csv: ``python -m espnet_lole.bin.lole_score --help``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_lole.atomic_io import write_whole
from espnet_lole.evaluation.normalize import cer_languages
from espnet_lole.evaluation.rates import score_set
from espnet_lole.evaluation.report import results_md, summary_table, write_result_txt
from espnet_lole.evaluation.results import Decoded, SystemScore, csv_rows, update_csv, write_csv


def get_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="Score decoded test sets; write <expdir>/RESULTS.md and <expdir>/results.csv.")
    parser.add_argument("--expdir", type=Path, required=True, help="where RESULTS.md and results.csv go")
    parser.add_argument("--dumpdir", type=Path, required=True, help="holds <test_set>/{text,utt2lang}")
    parser.add_argument("--decoded", action="append", required=True, help="system:scenario:decode_dir; repeat for each system")
    parser.add_argument("--test_sets", required=True, help="names of the test sets, with spaces between them")
    parser.add_argument(
        "--optional_cer_languages", default="", help="languages to score by character beside the unspaced ones: ko"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the training, a column of results.csv")
    parser.add_argument("--command", help="that the user gave, for RESULTS.md; default: this one")
    return parser


def parse_decoded(texts: Sequence[str]) -> list[Decoded]:
    """Read the ``--decoded`` options.

    Raises:
        ValueError: one is not understood, or a system and scenario come twice.
    """
    decoded = [Decoded.parse(text) for text in texts]
    keys = [(d.system, d.scenario) for d in decoded]
    twice = sorted({":".join(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(
            f"expected each system:scenario once in --decoded, got again {' '.join(twice)}: add a _suffix to the system"
        )
    return decoded


def score(args: argparse.Namespace, command: str) -> str:
    """Score every system, write all files, and return the summary table.

    Raises:
        ValueError: an option or a file is not as expected.
        OSError: a file cannot be read or written.
    """
    test_sets = args.test_sets.split()
    if not test_sets or len(set(test_sets)) < len(test_sets):
        raise ValueError(f"expected --test_sets with different names, got {args.test_sets!r}")
    by_character = cer_languages(args.optional_cer_languages.split())
    scores = []
    for d in parse_decoded(args.decoded):
        sets = [score_set(d.decode_dir, args.dumpdir, name, by_character, d.finds_language) for name in test_sets]
        scores.append(SystemScore(d, sets))
    new = [csv_rows(s, by_character, args.seed) for s in scores]
    for system, own in zip(scores, new, strict=True):
        write_result_txt(system)
        write_csv(system.decoded.decode_dir / "results.csv", own)
    rows = update_csv(args.expdir / "results.csv", [row for own in new for row in own])
    write_whole(args.expdir / "RESULTS.md", results_md(scores, rows, by_character, command))
    return summary_table(scores, rows, by_character)


def main(cmd: Sequence[str] | None = None) -> None:
    """Score; a mistake in the options or files is one line on stderr and exit status 1."""
    arguments = list(sys.argv[1:] if cmd is None else cmd)
    args = get_parser().parse_args(arguments)
    try:
        own = shlex.join(["python", "-m", "espnet_lole.bin.lole_score", *arguments])
        print(score(args, args.command or own), end="")
    except (ValueError, OSError) as err:
        print(f"error: {' '.join(str(err).split())}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

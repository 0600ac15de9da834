"""Turns Kaldi directories into the recipe's data: `python -m espnet_lole.bin.lole_data {collect,perturb,format,filter}`."""

import argparse
import sys
from collections.abc import Sequence

from espnet_lole.data.corpora import collect
from espnet_lole.data.filtering import filter_dir
from espnet_lole.data.formatting import FORMATS, format_dir
from espnet_lole.data.perturbation import perturb_dir
from espnet_lole.data.summary import Tally, summary


def get_parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    parser = argparse.ArgumentParser(description="Turns any set of Kaldi directories into the recipe's data.")
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("collect", help="bring a corpus file's directories together in data/{train,dev,test_<lang>}")
    one.add_argument("--corpus", required=True, help="YAML file, see conf/corpora/example.yaml")
    one.add_argument("--datadir", default="data", help="where to write")
    one.add_argument("--langs", default="", help='languages to take, "de en"; all by default')

    copies = commands.add_parser("perturb", help="name utterances again, to be played faster and slower when they are formatted")
    copies.add_argument("--src", nargs="+", required=True, help="Kaldi directories")
    copies.add_argument("--dst", nargs="+", required=True, help="directory to write for each")
    copies.add_argument("--factors", required=True, help='how many times as fast, "0.9 1.0 1.1"')

    two = commands.add_parser("format", help="write the audio of directories as 16 kHz mono files")
    two.add_argument("--src", nargs="+", required=True, help="Kaldi directories")
    two.add_argument("--dst", nargs="+", required=True, help="directory to write for each")
    two.add_argument("--audio_format", default="flac", choices=FORMATS, help="format of the files")
    two.add_argument("--nj", type=int, default=4, help="recordings read at once")

    three = commands.add_parser("filter", help="drop too short and too long utterances (training and development sets only)")
    three.add_argument("--src", nargs="+", required=True, help="directories that format wrote")
    three.add_argument("--dst", nargs="+", required=True, help="directory to write for each")
    three.add_argument("--min_wav_duration", type=float, default=0.1, help="shortest, in seconds")
    three.add_argument("--max_wav_duration", type=float, default=30.0, help="longest, in seconds")
    three.add_argument("--langs", default="", help='languages to keep, "de en"; all by default')
    return parser


def run(args: argparse.Namespace) -> list[Tally]:
    """Runs one subcommand.

    Args:
        args: what the parser gave.

    Returns:
        What it kept and dropped of each language and set.

    Raises:
        ValueError: not a `--dst` for each `--src`, or the data are refused.
    """
    langs = args.langs.split() if "langs" in args else []
    if args.command == "collect":
        return collect(args.corpus, args.datadir, langs)
    if len(args.src) != len(args.dst):
        raise ValueError(f"expected a --dst for each --src, got {len(args.dst)} for {len(args.src)}; name as many")
    tallies = []
    for src, dst in zip(args.src, args.dst, strict=True):
        if args.command == "perturb":
            tallies += perturb_dir(src, dst, args.factors.split())
        elif args.command == "format":
            tallies += format_dir(src, dst, args.audio_format, args.nj)
        else:
            tallies += filter_dir(src, dst, args.min_wav_duration, args.max_wav_duration, langs)
    return tallies


def main(cmd: Sequence[str] | None = None) -> None:
    """Parses the command line, runs it and prints its summary; a user's mistake becomes one line and exit status 1.

    Args:
        cmd: the arguments; the process's by default.
    """
    args = get_parser().parse_args(cmd)
    try:
        print("\n".join(summary(run(args))))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Turns Kaldi directories into the recipe's data: `python -m espnet_lole.bin.lole_data {collect,format,filter}`."""

import argparse
import sys
from collections.abc import Sequence

from espnet_lole.data.audio import FORMATS, format_dir
from espnet_lole.data.corpora import collect, filter_dir


def get_parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    parser = argparse.ArgumentParser(description="Turns any set of Kaldi directories into the recipe's data.")
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("collect", help="bring a corpus file's directories together in data/{train,dev,test_<lang>}")
    one.add_argument("--corpus", required=True, help="YAML file, see conf/corpora/example.yaml")
    one.add_argument("--datadir", default="data", help="where to write")
    one.add_argument("--langs", default="", help='languages to take, "de en"; all by default')

    two = commands.add_parser("format", help="write a directory's audio as 16 kHz mono files")
    two.add_argument("--src", required=True, help="Kaldi directory")
    two.add_argument("--dst", required=True, help="directory to write")
    two.add_argument("--audio_format", default="flac", choices=FORMATS, help="format of the files")
    two.add_argument("--nj", type=int, default=4, help="recordings read at once")

    three = commands.add_parser("filter", help="drop too short and too long utterances (training and development sets only)")
    three.add_argument("--src", required=True, help="directory that format wrote")
    three.add_argument("--dst", required=True, help="directory to write")
    three.add_argument("--min_wav_duration", type=float, default=0.1, help="shortest, in seconds")
    three.add_argument("--max_wav_duration", type=float, default=30.0, help="longest, in seconds")
    three.add_argument("--langs", default="", help='languages to keep, "de en"; all by default')
    return parser


def run(args: argparse.Namespace) -> None:
    """Runs one subcommand and prints its summary.

    Args:
        args: what the parser gave.
    """
    if args.command == "collect":
        print("\n".join(collect(args.corpus, args.datadir, args.langs.split())))
    elif args.command == "filter":
        lines = filter_dir(args.src, args.dst, args.min_wav_duration, args.max_wav_duration, args.langs.split())
        print("\n".join(lines))
    else:
        written, skipped = format_dir(args.src, args.dst, args.audio_format, args.nj)
        print(f"{args.dst}: {written} utterances")
        if skipped:
            total, why = sum(skipped.values()), ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
            print(f"warning: {total} of {total + written} utterances skipped ({why}), see {args.dst}/skipped", file=sys.stderr)


def main(cmd: Sequence[str] | None = None) -> None:
    """Parses the command line and runs it; a user's mistake becomes one line on stderr and exit status 1.

    Args:
        cmd: the arguments; the process's by default.
    """
    args = get_parser().parse_args(cmd)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

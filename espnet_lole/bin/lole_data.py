"""Prepare the recipe's data from any corpus: `python -m espnet_lole.bin.lole_data COMMAND`."""

import argparse
import sys
from collections.abc import Sequence

from espnet_lole.data.collecting import collect
from espnet_lole.data.corpora import load_corpus
from espnet_lole.data.filtering import filter_dir
from espnet_lole.data.formatting import FORMATS, format_dir
from espnet_lole.data.perturbation import perturb_dir
from espnet_lole.data.summary import Tally, format_summary
from espnet_lole.languages import check_language


def get_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description="Prepare the recipe's data from any corpus.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("collect", help="collect the corpora of a file in data/{train,dev,test_<lang>}")
    command.add_argument("--corpus", required=True, help="YAML, see conf/corpora/example.yaml, or a manifest")
    command.add_argument("--datadir", default="data", help="folder to write into")
    command.add_argument("--langs", default="", help='languages to collect, e.g. "de en"; default: all')
    command.add_argument("--backbone", help="Whisper to train: its languages are checked first")
    command.add_argument("--download", default="false", choices=("false", "true"), help="let ESPnet's recipes download")

    command = _add_command(commands, "perturb", "repeat utterances with speed factors, which `format` applies")
    command.add_argument("--factors", required=True, help='speed factors, e.g. "0.9 1.0 1.1"')

    command = _add_command(commands, "format", "write the audio of directories as 16 kHz mono files")
    command.add_argument("--audio_format", default="flac", choices=FORMATS, help="format of the files")
    command.add_argument("--nj", type=int, default=4, help="number of recordings to read at once")

    command = _add_command(commands, "filter", "drop utterances of train and dev by duration and language")
    command.add_argument("--min_wav_duration", type=float, default=0.1, help="shortest duration, in seconds")
    command.add_argument("--max_wav_duration", type=float, default=30.0, help="longest duration, in seconds")
    command.add_argument("--langs", default="", help='languages to select, e.g. "de en"; default: all')
    return parser


def _add_command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    """Add a subcommand that reads directories and writes as many."""
    command = commands.add_parser(name, help=text)
    command.add_argument("--src", nargs="+", required=True, help="Kaldi directories to read")
    command.add_argument("--dst", nargs="+", required=True, help="directory to write for each of --src")
    return command


def run(args: argparse.Namespace) -> list[Tally]:
    """Run a subcommand.

    Args:
        args: the parsed command line.

    Returns:
        The counts of each language and set.

    Raises:
        ValueError: the numbers of `--src` and `--dst` differ, or the data are malformed.
    """
    if args.command == "collect":
        if args.backbone:
            check_backbone(args.backbone, args.corpus, args.langs.split())
        return collect(args.corpus, args.datadir, args.langs.split(), args.download == "true")
    if len(args.src) != len(args.dst):
        raise ValueError(f"expected a --dst for each --src, got {len(args.dst)} for {len(args.src)}; name as many")
    tallies = []
    for src, dst in zip(args.src, args.dst, strict=True):
        if args.command == "perturb":
            tallies += perturb_dir(src, dst, args.factors.split())
        elif args.command == "format":
            tallies += format_dir(src, dst, args.audio_format, args.nj)
        else:
            tallies += filter_dir(src, dst, args.min_wav_duration, args.max_wav_duration, args.langs.split())
    return tallies


def check_backbone(backbone: str, corpus: str, langs: Sequence[str]) -> None:
    """Check, before anything is prepared, that a backbone has the languages that will be trained.

    Args:
        backbone: published name, folder or `.pt` file of a Whisper.
        corpus: the corpus file.
        langs: the languages to collect; none: all of the corpus.

    Raises:
        FileNotFoundError: the corpus file or the backbone does not exist.
        ValueError: the backbone lacks a language, or has none at all.
    """
    from espnet_lole.whisper.checkpoint import load_config
    from espnet_lole.whisper.sizes import SIZES
    from espnet_lole.whisper.tokenizer import WhisperTokenizer

    config = SIZES[backbone].config() if backbone in SIZES else load_config(backbone)
    known = WhisperTokenizer(config.vocab_size).languages
    for language in langs or dict.fromkeys(source.language for source in load_corpus(corpus)[1]):
        check_language(language, corpus, known)


def main(cmd: Sequence[str] | None = None) -> None:
    """Run the command line and print its summary; a user's mistake is one line and exit status 1.

    Args:
        cmd: the arguments; default: those of the process.
    """
    args = get_parser().parse_args(cmd)
    try:
        print("\n".join(format_summary(run(args))))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

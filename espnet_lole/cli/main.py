"""Language experts on a frozen Whisper: use, inspect, export and extend trained systems, and plan trainings."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from espnet_lole.cli import add_expert, export, info, plan, recipe, score, transcribe, upload

COMMANDS = {
    "transcribe": transcribe,
    "info": info,
    "export": export,
    "upload": upload,
    "add-expert": add_expert,
    "score": score,
    "plan": plan,
    "recipe": recipe,
}
"""Modules of the commands: docstring is the help, ``add_arguments`` takes a parser, ``run`` the parsed arguments."""


def get_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(prog="lole", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary, _, details = module.__doc__.partition("\n")
        raw = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=details.strip(), formatter_class=raw
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(cmd: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 1 after a user's mistake, which is explained in one line on standard error. argparse exits with 2.
    """
    args = get_parser().parse_args(cmd)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # only the progress of transcribing is shown
    try:
        args.run(args)
    except BrokenPipeError:  # the reader of the output has stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

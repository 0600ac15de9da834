"""Lay out a recipe folder, as ESPnet's TEMPLATE/asr1/setup.sh does.

The folder has run.sh (names of data and models), lole.sh (the stages), run_baselines.sh, run_add_language.sh, conf,
local, and the demo's backbone. As egs2/NAME/asr1 of an ESPnet checkout it has ESPnet's path.sh and cmd.sh, elsewhere
its own.

Examples:
  lole recipe my_recipe
  lole recipe ~/espnet/egs2/mine/asr1
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "recipe"
"""The recipe in this package; in a checkout of the project, a link to egs2/lole/asr1."""
FOLDERS = ("lole_utils", "conf", "local", "models")
"""What is copied of it with its scripts: not its data and experiments."""
LINKED = ("path.sh", "db.sh", "scripts", "pyscripts", "steps", "utils")
"""What is a link to ESPnet's TEMPLATE/asr1 in a checkout, as with its setup.sh."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty folder to lay out the recipe in")


def run(args: argparse.Namespace) -> None:
    """Lay out the folder.

    Raises:
        ValueError: the folder holds files already, or is at the wrong depth of an ESPnet checkout.
        OSError: it cannot be written.
    """
    lay_out(args.folder)
    print(f"{args.folder}: name your data and Whisper in its run.sh, then call ./run.sh there (--help lists options)")


def lay_out(folder: Path) -> None:
    """Copy the recipe into a folder, which appears whole or not at all.

    Args:
        folder: new or empty; ``egs2/<name>/<task>`` of an ESPnet checkout, or anywhere.

    Raises:
        ValueError: the folder holds files already, or is at the wrong depth of an ESPnet checkout.
        OSError: it cannot be written.
    """
    from espnet_lole.atomic_io import atomic_folder

    recipes = folder.resolve().parent.parent
    if (folder.resolve().parent / "TEMPLATE" / "asr1").is_dir() or (recipes / "egs2" / "TEMPLATE").is_dir():
        raise ValueError(f"{folder} is in an ESPnet checkout, whose recipes are egs2/<name>/<task>: give such a folder")
    with atomic_folder(folder, [SOURCE]) as made:
        for script in SOURCE.glob("*.sh"):
            shutil.copy(script, made)
        for name in FOLDERS:
            shutil.copytree(SOURCE / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
        if (recipes / "TEMPLATE" / "asr1").is_dir():
            _use_template(made, recipes / "TEMPLATE" / "asr1")


def _use_template(recipe: Path, template: Path) -> None:
    """Put ESPnet's scripts in the place of the recipe's own: cmd.sh is copied, as it is edited; others are links."""
    shutil.copy(template / "cmd.sh", recipe)
    for name in LINKED:
        (recipe / name).unlink(missing_ok=True)
        (recipe / name).symlink_to(Path("../../TEMPLATE/asr1", name))
    for file in (template / "conf").glob("*.conf"):
        if not (recipe / "conf" / file.name).exists():
            shutil.copy(file, recipe / "conf")

"""What a recipe of ESPnet needs before it runs: programs, Python modules, a locale, and the corpus where db.sh says."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from espnet_lole.data.recipes import Recipe

VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
MODULE = "python:"
DOWNLOAD = "--local_data_opts '--download true'"


def missing(recipe: Recipe, download: bool) -> list[str]:
    """List what a recipe needs and lacks, each with what to do.

    Args:
        recipe: the recipe. If `needs` names no variable of db.sh, those that its local/data.sh mentions are checked.
        download: the recipe may download its corpus.

    Raises:
        FileNotFoundError: there is no checkout.
    """
    folder, problems = recipe.folder, []
    if not (folder / "local" / "data.sh").is_file():
        return [f"{folder}/local/data.sh does not exist: correct ESPNET_ROOT or the recipe's name"]
    if kaldi_locale() is None:
        problems.append("there is neither a locale C.UTF-8 nor en_US.UTF-8: locale-gen en_US.UTF-8")
    for word in recipe.needs:
        if word.startswith(MODULE):
            problems += _missing_module(word.removeprefix(MODULE), folder)
        elif "$" not in word and not shutil.which(word):
            problems.append(f"the program {word} is not installed: apt-get install {word}, or conda install {word}")
    values = read_db(recipe, variables(recipe))
    wrong = {name: _location_problem(name, value, folder, download) for name, value in values.items()}
    problems += [problem for problem in wrong.values() if problem]
    for word in recipe.needs:
        names = VARIABLE.findall(word)
        path = folder / VARIABLE.sub(lambda match: values[match[1]], word.replace("}", ""))
        if names and not download and not any(wrong[name] for name in names) and not path.exists():
            problems.append(f"{path} does not exist: unpack the corpus there, or correct {names[0]} in {folder}/db.sh")
    return problems


def variables(recipe: Recipe) -> list[str]:
    """Return the variables of db.sh that say where the corpus is."""
    if named := [name for word in recipe.needs for name in VARIABLE.findall(word)]:
        return list(dict.fromkeys(named))
    db, script = (
        path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for path in (recipe.folder / "db.sh", recipe.folder / "local" / "data.sh")
    )
    known = set(re.findall(r"^\s*(?:export\s+)?([A-Z]\w*)=", db, flags=re.MULTILINE))
    return [name for name in dict.fromkeys(VARIABLE.findall(script)) if name in known]


def read_db(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """Return the values of variables in the recipe's db.sh."""
    script = '. ./db.sh >/dev/null 2>&1; for name in "$@"; do printf "%s\\0" "${!name}"; done'
    command = ["bash", "-c", script, "bash", *names]
    done = subprocess.run(command, cwd=recipe.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return dict(zip(names, done.stdout.split("\0"), strict=False))


def kaldi_locale() -> str | None:
    """Return the UTF-8 locale for Kaldi's validate_data_dir.sh; it knows C.UTF-8 in this spelling, and en_US.UTF-8."""
    if not (program := shutil.which("locale")):
        return None
    installed = subprocess.run([program, "-a"], capture_output=True, text=True).stdout.split()
    return next((name for name in ("C.UTF-8", "en_US.UTF-8", "en_US.utf8", "C.utf8") if name in installed), None)


def _missing_module(module: str, folder: Path) -> list[str]:
    """Return a problem if the Python of a recipe cannot import a module."""
    script = f". ./path.sh >/dev/null 2>&1; python3 -c 'import {module}'"
    if (
        subprocess.run(["bash", "-c", script], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True).returncode
        == 0
    ):
        return []
    return [f"the recipe's Python cannot import {module}: install it there, as with pip install {module}"]


def _location_problem(name: str, value: str, folder: Path, download: bool) -> str | None:
    """Return what is wrong with the location of a corpus in db.sh; a value that is no path is right."""
    path = folder / value
    if not value:
        return f"{name} in {folder}/db.sh is empty: set it to the folder of the corpus"
    if download or path.is_file() or (path.is_dir() and any(path.iterdir())):
        return None
    if not Path(value).is_absolute() and (value.startswith("downloads") or "/" in value):
        return (
            f"{name} in {folder}/db.sh is '{value}', so that the recipe would download the corpus: set it to the "
            f"folder of the corpus, or allow the download with {DOWNLOAD}"
        )
    return f"{name} in {folder}/db.sh is '{value}', which is missing or empty: correct it" if "/" in value else None

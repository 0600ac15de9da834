"""Runs of ESPnet's recipes: what all need is checked first; each runs in a copy of the checkout made of links."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path

from espnet_lole.atomic_io import dir_lock, write_text_atomic
from espnet_lole.data.recipe_needs import DOWNLOAD, kaldi_locale, missing, read_db, variables
from espnet_lole.data.recipes import Recipe

COMPLETE = ".complete"
"""File in the work folder of a recipe that has ended well."""
LOG = "data.sh.log"
SHOWN_LINES, MAX_LINES = 8, 200
NO_DOWNLOAD = "no-download-was-asked-for.invalid"
"""Name of a proxy that does not exist, so that a recipe cannot download anything."""


def prepare_recipes(
    wanted: Mapping[str, tuple[Recipe, Collection[str]]], workdir: Path, download: bool = False
) -> dict[str, Path]:
    """Return for each language the recipe's folder whose `data` has its sets, after running what has not run yet.

    Sets in the checkout are taken if all sets of a language are there. Otherwise the recipe runs in a folder of its
    own, `workdir/<recipe and options>`, so that nothing is written to the checkout but downloads.

    Args:
        wanted: language -> its recipe, and the names of its sets.
        workdir: the folder for what recipes write.
        download: allow recipes to download.

    Raises:
        OSError: something that a recipe needs is missing, which the message lists for all languages; a recipe failed,
            or does not prepare a set.
    """
    workdir = Path(os.path.abspath(workdir))
    folders = {language: find_prepared(recipe, sets, workdir) for language, (recipe, sets) in wanted.items()}
    problems = {lang: missing(wanted[lang][0], download) for lang, folder in folders.items() if folder is None}
    if lines := [f"\n  {lang} ({wanted[lang][0].command}): {'; '.join(p)}" for lang, p in problems.items() if p]:
        raise OSError(f"no recipe of ESPnet was started, because something is missing:{''.join(lines)}")
    for language, (recipe, sets) in wanted.items():
        if folders[language] is None:
            with dir_lock(workdir):
                folders[language] = find_prepared(recipe, sets, workdir) or run_recipe(recipe, workdir, download)
        _check_sets(recipe, sets, folders[language])
    return folders


def find_prepared(recipe: Recipe, sets: Collection[str], workdir: Path) -> Path | None:
    """Return the recipe's folder whose data are complete: of an earlier run, or of the checkout with all the sets."""
    work = _work_folder(recipe, workdir)
    if (work / COMPLETE).is_file() and (work / "egs2" / recipe.name / "data").is_dir():
        return work / "egs2" / recipe.name
    folder = recipe.folder
    return folder if all((folder / "data" / name / "wav.scp").is_file() for name in sets) else None


def run_recipe(recipe: Recipe, workdir: Path, download: bool) -> Path:
    """Run the local/data.sh of a recipe.

    Returns:
        The folder in which it ran.

    Raises:
        OSError: it failed; what it left is moved aside.
    """
    work = _work_folder(recipe, workdir)
    if work.exists():
        print(f"{work} has no complete data: moved to {_move_aside(work)}", file=sys.stderr)
    folder = make_work_folder(recipe, work, download)
    command = ["bash", "local/data.sh", *recipe.options, *(() if download else recipe.offline)]
    print(f"{folder}: {shlex.join(command)}", file=sys.stderr, flush=True)
    status, lines = _run(command, folder, work, download)
    if status != 0:
        aside = _move_aside(work)
        hint = ""
        if any(NO_DOWNLOAD in line for line in lines):
            hint = f"\nit wanted to download, which {DOWNLOAD} allows"
        last = "".join(f"\n  {line}" for line in lines[-SHOWN_LINES:]) or " without a message"
        raise OSError(
            f"{recipe.command}: local/data.sh failed with exit status {status}; what it left is in {aside} and will "
            f"not be used; {aside / LOG} ends with:{last}{hint}"
        )
    write_text_atomic(work / COMPLETE, f"{recipe.folder}: {shlex.join(command)}\n")
    return folder


def make_work_folder(recipe: Recipe, work: Path, download: bool) -> Path:
    """Make a copy of the checkout of links, with what `assume` names, and without the recipe's earlier data.

    Returns:
        The recipe's folder in it.
    """
    root, folder = recipe.folder.parents[2], work / "egs2" / recipe.name
    if download and any(value.startswith("downloads") for value in read_db(recipe, variables(recipe)).values()):
        (recipe.folder / "downloads").mkdir(exist_ok=True)
    assumed = [word for word in recipe.assume if not word.startswith("$")]
    own = [f"egs2/{recipe.name}/{name}/" for name in ("conf", "local")]  # recipes write to conf, and to local/..
    link_tree(root, work, [*own, *(word for word in assumed if "/" in word)])
    for name in ("data", "dump", "exp"):
        (folder / name).unlink(missing_ok=True)
    absent = [name for name in assumed if "/" not in name and not shutil.which(name)]
    programs = {name: f'echo "{name} is not installed" >&2; exit 1' for name in absent}
    if kaldi_locale() == "C.utf8":  # Debian's spelling, for which validate_data_dir.sh does not look
        programs["locale"] = f'{shutil.which("locale")} "$@" | sed "s/^C.utf8$/C.UTF-8/"'
    (work / "bin").mkdir()
    for name, line in programs.items():
        (work / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (work / "bin" / name).chmod(0o755)
    if not download:
        _assume_in_corpora(recipe, work, folder)
    return folder


def link_tree(source: Path, target: Path, own: Sequence[str]) -> None:
    """Make a folder of links to the entries of another one.

    Args:
        source: the folder to link to; it may be missing.
        target: the folder to make.
        own: relative paths of folders, which end in a slash and are made, with links to what is in them; and of files,
            which are made if they are missing.
    """
    target.mkdir(parents=True, exist_ok=True)
    inner: dict[str, list[str]] = defaultdict(list)
    for path in own:
        name, slash, rest = path.partition("/")
        inner[name] += [rest] if slash else []
    for name in {*inner, *(os.listdir(source) if source.is_dir() else ())}:
        if name in inner and (inner[name] or not (source / name).exists()):
            if inner[name]:
                link_tree(source / name, target / name, [rest for rest in inner[name] if rest])
            else:
                (target / name).touch()
        else:
            (target / name).symlink_to(source / name)


def _assume_in_corpora(recipe: Recipe, work: Path, folder: Path) -> None:
    """Stand in for files that `assume` names in a corpus: a folder of links, to which the variable in db.sh leads."""
    files: dict[str, list[str]] = defaultdict(list)
    for word in recipe.assume:
        if word.startswith("$"):
            variable, _, rest = word[1:].partition("/")
            files[variable].append(rest)
    lines = [f". {shlex.quote(str(recipe.folder / 'db.sh'))}"]
    for variable, value in read_db(recipe, list(files)).items():
        if not all((recipe.folder / value / file).exists() for file in files[variable]):
            link_tree(recipe.folder / value, work / "corpora" / variable, files[variable])
            lines.append(f"{variable}={shlex.quote(str(work / 'corpora' / variable))}")
    if len(lines) > 1:
        (folder / "db.sh").unlink(missing_ok=True)
        (folder / "db.sh").write_text("\n".join(lines) + "\n")


def _run(command: Sequence[str], folder: Path, work: Path, download: bool) -> tuple[int, list[str]]:
    """Run a command, and show and log its output.

    Returns:
        Its exit status, and the last lines of its output that are not blank.
    """
    env = os.environ | {"PATH": f"{work / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    if not download:
        env |= {f"{kind}_proxy": f"http://{NO_DOWNLOAD}" for kind in ("http", "https", "ftp", "all")}
        env |= {name.upper(): value for name, value in env.items() if name.endswith("_proxy")}
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "no_proxy": "", "NO_PROXY": ""}
    lines = deque(maxlen=MAX_LINES)
    with (
        (work / LOG).open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            log.write(line)
            lines.extend([line.rstrip()] if line.strip() else [])
    return process.returncode, list(lines)


def _check_sets(recipe: Recipe, sets: Collection[str], folder: Path) -> None:
    """Check that a recipe that ended well has prepared the sets."""
    if lacking := [name for name in sets if not (folder / "data" / name / "wav.scp").is_file()]:
        present = ", ".join(sorted(path.parent.name for path in folder.glob("data/*/wav.scp"))) or "none"
        raise OSError(
            f"{recipe.command}: expected the sets {', '.join(lacking)} in {folder}/data, got: {present}; correct the "
            "names in the corpus file"
        )


def _work_folder(recipe: Recipe, workdir: Path) -> Path:
    return workdir / re.sub(r"[^\w.=-]+", "_", recipe.command)


def _move_aside(folder: Path) -> Path:
    """Rename a folder to `<folder>.failed.<number>`."""
    new = next(path for n in count(1) if not (path := folder.with_name(f"{folder.name}.failed.{n}")).exists())
    folder.rename(new)
    return new

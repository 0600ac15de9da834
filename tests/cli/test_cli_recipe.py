"""A recipe's folder that is laid out: its files, its links, and its first stages."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_lole.cli.main import main
from espnet_lole.cli.recipe import FOLDERS

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs2" / "lole" / "asr1"
LINKS = {"path.sh", "db.sh", "scripts", "pyscripts", "steps", "utils"}
"""What ESPnet's TEMPLATE/asr1/setup.sh links."""


def files_of_git() -> set[str]:
    """List the recipe's files in git, with those under its links to other folders, without documents."""
    links = {"conf": "conf/", "local": "local/", "models": "models/"}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    own = {file.removeprefix("egs2/lole/asr1/") for file in listed if file.startswith("egs2/lole/asr1/")}
    return (own - set(links) | {f for f in listed if f.startswith(tuple(links.values()))}) - {
        file for file in own if file.endswith(".md")
    }


def files_in(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts}


@pytest.fixture
def template(tmp_path) -> Path:
    """A stand-in for ESPnet's egs2/TEMPLATE/asr1, of the files that a recipe copies or links."""
    folder = tmp_path / "espnet" / "egs2" / "TEMPLATE" / "asr1"
    for name in (*LINKS, "cmd.sh", "conf/fbank.conf"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("# ESPnet's\n") if "." in name else (folder / name).mkdir()
    return folder


def test_the_folder_has_the_files_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", "mine/asr1"]) == 0
    laid_out = files_in(Path("mine/asr1")) - {".espnet_lole"}
    assert files_of_git() <= laid_out
    for file in laid_out:
        assert filecmp.cmp(Path("mine/asr1", file), RECIPE / file, shallow=False)
        assert os.access(Path("mine/asr1", file), os.X_OK) == os.access(RECIPE / file, os.X_OK), file
    assert not any(path.is_symlink() for path in Path("mine/asr1").rglob("*"))


def test_a_recipe_of_an_espnet_checkout_has_espnets_path_and_jobs(template):
    folder = template.parents[1] / "mine" / "asr1"
    assert main(["recipe", str(folder)]) == 0
    assert {path.name for path in folder.rglob("*") if path.is_symlink()} == LINKS
    for name in LINKS:
        assert (folder / name).samefile(template / name) and not Path(os.readlink(folder / name)).is_absolute()
    assert (folder / "cmd.sh").read_text() == "# ESPnet's\n" and (folder / "local" / "path.sh").is_file()
    assert (folder / "conf" / "fbank.conf").is_file() and (folder / "conf" / "train.yaml").is_file()


@pytest.mark.parametrize("place", ["egs2/mine", "mine/asr1"])
def test_a_folder_at_another_depth_of_a_checkout_is_refused(template, capsys, place):
    assert main(["recipe", str(template.parents[2] / place)]) == 1
    assert "whose recipes are egs2/<name>/<task>" in capsys.readouterr().err
    assert not (template.parents[2] / place).exists()


def test_a_folder_with_files_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "run.sh").write_text("mine")
    assert main(["recipe", str(tmp_path)]) == 1
    assert "holds files" in capsys.readouterr().err and files_in(tmp_path) == {"run.sh"}


def test_the_built_package_has_the_files_of_the_recipe(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path, "build_py", "-d", tmp_path / "built"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    built = files_in(tmp_path / "built" / "espnet_lole" / "recipe")
    assert files_of_git() <= built and {Path(file).parts[0] for file in built if "/" in file} == set(FOLDERS)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["anywhere", "in ESPnet"])
def test_the_first_stages_run_in_the_folder(tmp_path, place):
    """With the package on Python's path, as where it is installed."""
    folder = tmp_path / "egs2" / "mine" / "asr1"
    if place == "in ESPnet":
        checkout = Path(os.environ.get("ESPNET_ROOT", "nowhere"))
        if not (checkout / "egs2" / "TEMPLATE").is_dir():
            pytest.skip("needs ESPNET_ROOT, the path of an ESPnet checkout")
        for part in ("egs2/TEMPLATE", "tools/extra_path.sh", "utils"):
            (tmp_path / part).parent.mkdir(exist_ok=True)
            (tmp_path / part).symlink_to(checkout / part)
    assert main(["recipe", str(folder)]) == 0
    assert all(path.exists() for path in folder.rglob("*"))
    rows = ["path,text,language"]
    for i in range(12):
        soundfile.write(folder / f"{i}.wav", np.random.default_rng(i).normal(0, 0.1, 8000), 16_000)
        rows.append(f"{folder / f'{i}.wav'},{'eins' if i % 2 else 'bir'} {i},{'de' if i % 2 else 'tr'}")
    (folder / "mine.csv").write_text("\n".join(rows) + "\n")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    env.pop("LOLE_ROOT", None)
    command = ["./run.sh", "--corpus", "mine.csv", "--stop_stage", "4", "--python", sys.executable]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {line.split()[1] for line in (folder / "dump/raw/train/utt2lang").read_text().splitlines()} == {"de", "tr"}

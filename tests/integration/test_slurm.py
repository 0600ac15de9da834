"""The recipe through ESPnet's own slurm.pl and launcher, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipes import ROOT, Recipe

ESPNET = Path(os.environ.get("ESPNET_ROOT", "/nowhere")) / "egs2" / "TEMPLATE" / "asr1"
STAND_INS = Path(__file__).with_name("slurm")
RUN = ["--stage", "11", "--stop_stage", "12", "--systems", "experts"]
NO_ESPNET = not (ESPNET / "utils" / "slurm.pl").is_file()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NO_ESPNET, reason="needs slurm.pl: set ESPNET_ROOT to an ESPnet checkout"),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    """Formatted data of two languages, in a folder that finds the package as a checkout of it does."""
    root = tmp_path_factory.mktemp("slurm")
    (root / "espnet_lole").symlink_to(ROOT / "espnet_lole")
    made = Recipe(root / "egs2" / "lole" / "asr1")
    prepare = "-m lole_mini.prepare --output data/lole_mini --langs de tr --scale 0.1".split()
    path = f"{ROOT}:{ROOT / 'local'}"
    subprocess.run([sys.executable, *prepare], cwd=made.folder, check=True, env=os.environ | {"PYTHONPATH": path})
    made.run("--stop_stage", "4")
    return made


@pytest.fixture
def on_slurm(monkeypatch) -> None:
    """The back end slurm with the stand-ins."""
    monkeypatch.setenv("cmd_backend", "slurm")
    monkeypatch.setenv("PATH", f"{STAND_INS}:{os.environ['PATH']}")


@pytest.fixture(scope="module")
def processes(recipe) -> Path:
    """Experts trained in two processes of this machine."""
    recipe.run(*RUN, "--stop_stage", "11", "--num_nodes", "2", "--expdir", "exp_local")
    return recipe.experiment("experts", "exp_local")


def test_two_nodes_train_as_two_processes_and_jobs_decode(recipe, processes, on_slurm):
    """The jobs have nothing but PATH in their environment."""
    recipe.run(*RUN, "--num_nodes", "2", "--inference_nj", "2")
    training, decoding = (recipe.folder / "sbatch.calls").read_text().splitlines()
    assert "--nodes 2" in training and "--array" not in training and "--array 1-2" in decoding
    assert not re.search("--time|-t ", training + decoding)
    for epoch in (1, 2):
        expected = recipe.losses(processes, epoch)
        assert recipe.losses(recipe.experiment("experts"), epoch) == pytest.approx(expected, rel=1e-3, nan_ok=True)
    for lang in ("de", "tr"):
        text = recipe.experiment("experts") / "decode_tiny_aware" / f"test_{lang}" / "text"
        references = (recipe.folder / "dump" / "raw" / f"test_{lang}" / "text").read_text().splitlines()
        assert len(text.read_text().splitlines()) == len(references) > 0


@pytest.mark.parametrize(("options", "message"), [
    (["--asr_args", "--expert_conf nonsense=1"], "training failed: .*nonsense"),
    (["--stage", "12"], "decoding failed: exp_failed/.* holds no system"),
])  # fmt: skip
def test_the_error_of_a_job_is_shown(recipe, on_slurm, options, message):
    printed = recipe.run(*RUN, "--inference_nj", "2", "--expdir", "exp_failed", *options, fails=True)
    assert re.search(f"^error: {message}", printed, re.MULTILINE), printed


def test_the_error_of_a_submission_is_shown(recipe, on_slurm):
    conf = recipe.folder / "conf" / "slurm.conf"
    before = conf.read_text()
    conf.write_text(before.replace("-p cpu", "-p nowhere"))
    printed = recipe.run(*RUN, "--expdir", "exp_refused", fails=True)
    conf.write_text(before)
    assert "error: training failed: sbatch: error: invalid partition specified: nowhere" in printed


def test_an_interrupt_cancels_the_job(recipe, on_slurm):
    folder = recipe.experiment("experts", "exp_cancelled")
    with recipe.start(*RUN, "--num_nodes", "2", "--expdir", "exp_cancelled") as process:
        while not (folder / "train.log").exists() or "epoch started" not in (folder / "train.log").read_text():
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    newest = max(recipe.folder.glob("sbatch.[0-9]*"), key=lambda file: file.stat().st_mtime)
    for _ in range(100):  # until the processes of the job have ended
        if not (sessions := [pid for pid in newest.read_text().split() if Path("/proc", pid).exists()]):
            break
        time.sleep(0.1)
    assert not sessions

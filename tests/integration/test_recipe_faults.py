"""The recipe killed in data preparation, decoding and scoring, or without permission to write; on a tiny Whisper."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import BOUND
from recipes import ROOT, Recipe

pytestmark = pytest.mark.slow

KILL = """
import os, signal
plain = os.replace
def replace(source, target):
    if str(target).endswith(os.environ["KILL_AT"]):
        os.killpg(0, signal.SIGKILL)
    plain(source, target)
os.replace = replace
"""
"""A `sitecustomize` that kills the process group of the recipe, or of the decoding, at a rename of a file or folder."""

SCORES = ["exp/*.*", "exp/*/*/results.csv", "exp/*/*/test_*/score_*"]
PARTS = {
    "data": (("1", "5"), ["data", "dump"], ["lole_mini/train_tr", "data/dev", "raw/test_de", "raw/train"]),
    "decode": (("12", "13"), ["exp/*.*", "exp/lole_zero_shot_tiny"], ["test_de/text", "tiny_agnostic/resources.json"]),
    "score": (("13", "13"), SCORES, ["score_wer/result.txt", "exp/results.csv", "exp/RESULTS.md"]),
}
"""First and last stage, what they make, and the writes that they are killed at."""


class Runs(Recipe):
    """Runs of the backbone alone, which needs no training."""

    def command(self, stage: str, stop_stage: str, *more: str) -> list[str]:
        command = ["./run.sh", "--python", sys.executable, "--backbone", "tiny", "--langs", "de tr"]
        command += ["--inference_config", "decode_tiny.yaml", "--systems", "zero_shot"]
        return [*command, "--stage", stage, "--stop_stage", stop_stage, *more]

    def call(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"LOLE_ROOT": str(ROOT), "HF_HUB_OFFLINE": "1", **env}
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=600, start_new_session=True
        )

    def files(self) -> dict[str, bytes]:
        """What the stages left, but for hidden files, logs, and the dates and times that differ from run to run."""
        contents = {}
        for file in (f for top in ("data", "dump", "exp") for f in (self.folder / top).rglob("*") if f.is_file()):
            if file.name.startswith(".") or file.suffix == ".log" or file.name in ("rtf", "resources.json"):
                continue
            lines = file.read_bytes().splitlines() if file.suffix in (".csv", ".md") else [file.read_bytes()]
            timed = (b",rtf,", b",memory_gb,", b"|zero_shot|", b"Made by", b"- date: ")
            contents[str(file.relative_to(self.folder))] = b"\n".join(
                line for line in lines if not any(t in line for t in timed)
            )
        return contents


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Runs:
    """A run without a fault, on a few utterances; nothing is trained."""
    made = Runs(tmp_path_factory.mktemp("faulty") / "asr1")
    script = made.folder / "local" / "data.sh"
    script.write_text(script.read_text().replace("--output data/lole_mini", "--output data/lole_mini --scale 0.02"))
    (made.folder / "kill").mkdir()
    (made.folder / "kill" / "sitecustomize.py").write_text(KILL)
    done = made.call(*made.command("1", "13"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return made


@pytest.mark.parametrize("part", PARTS)
def test_killed_at_a_write_the_same_command_ends_with_the_same_files(recipe, part):
    """Each run goes on from where the one before was killed."""
    stages, outputs, writes = PARTS[part]
    expected = recipe.files()
    for output in (found for pattern in outputs for found in recipe.folder.glob(pattern)):
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    for write in writes:
        done = recipe.call(*recipe.command(*stages), PYTHONPATH=str(recipe.folder / "kill"), KILL_AT=write)
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stdout[-3000:] + done.stderr[-3000:]
        assert recipe.files() != expected
    done = recipe.call(*recipe.command(*stages))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert recipe.files() == expected


@pytest.mark.parametrize(
    ("sent", "message"), [("KILL", "most often memory ran out"), ("SEGV", "ended by signal 11 (SEGV)")]
)
def test_a_command_that_is_killed_has_the_reason_in_its_log(tmp_path, sent, message):
    run_local = ROOT / "egs2" / "lole" / "asr1" / "lole_utils" / "run_local.sh"
    done = subprocess.run([run_local, tmp_path / "log", "bash", "-c", f"kill -{sent} $$"])
    assert done.returncode == 128 + signal.Signals[f"SIG{sent}"]
    assert re.search(f"^error: .*{re.escape(message)}", (tmp_path / "log").read_text(), re.MULTILINE)


NO_FILE = "cannot write to the folder {}: check its permissions"
DENIED = "cannot write {}: Permission denied: check free space and permissions"
READ_ONLY = {
    "1": ("data", DENIED.format(".*/data/train")),
    "3": ("dump/raw/org", DENIED.format(".*/dump/raw/org/train")),
    "4": ("dump/raw", DENIED.format(".*/dump/raw/train")),
    "11": ("exp", NO_FILE.format("exp/lole_train_experts_raw_lole_mini_seed0")),
    "12": ("exp/lole_zero_shot_tiny", NO_FILE.format("exp/lole_zero_shot_tiny")),
    "13": ("exp", DENIED.format("exp/results.csv")),
}
"""Stage, the folder that it cannot write to, and what it says."""


@pytest.mark.parametrize("stage", READ_ONLY)
def test_a_read_only_folder_is_named_and_loses_nothing(recipe, stage):
    before, (name, expected) = recipe.files(), READ_ONLY[stage]
    folder = recipe.folder / name
    folder.chmod(0o555)
    done = recipe.call(*BOUND, *recipe.command(stage, stage), *(["--systems", "experts"] if stage == "11" else []))
    folder.chmod(0o755)
    message = done.stdout + done.stderr
    assert done.returncode == 1 and re.search(f"^error: .*{expected}", message, re.MULTILINE), message[-3000:]
    assert "Traceback" not in message and recipe.files() == before

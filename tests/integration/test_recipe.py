"""The whole recipe on a tiny random Whisper and a few synthetic utterances, through the shell scripts."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_whisper
from safetensors.torch import load_file

from espnet_lole.atomic_io import held
from espnet_lole.train.checkpoints import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


class Recipe:
    """A copy of the recipe's scripts in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = ROOT / "egs2" / "lole" / "asr1"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("data", "dump", "exp"))
        tiny_whisper().save_pretrained(folder / "tiny")
        # in smaller batches a last one of one utterance is left, which two processes join to the one before
        small = {"max_epoch": 2, "num_workers": 0, "batch_bins": 640000}
        self.configure("train_experts", "train_tiny", small | {"expert_conf": {"rank": 2, "alpha": 4.0}})
        self.configure(
            "train_mole", "train_mole_tiny", small | {"fusion_conf": {"shared_layers": 2}, "classifier_conf": {"dropout": 0.0}}
        )
        self.configure("train_student", "train_student_tiny", small | {"expert_conf": {"rank": 4, "alpha": 8.0}})
        self.configure("train_multilingual", "train_multilingual_tiny", small | {"expert_conf": {"rank": 2, "alpha": 4.0}})
        self.configure("train_multilingual", "train_multilingual_tiny_r4", small | {"expert_conf": {"rank": 4, "alpha": 8.0}})
        self.configure("train_full", "train_full_tiny", small)
        self.configure("train_espnet", "train_espnet_tiny", small)
        (folder / "decode_tiny.yaml").write_text("{beam_size: 2, maxlenratio: 0.05, batch_seconds: 60.0}\n")

    def configure(self, source: str, name: str, changes: dict) -> None:
        conf = yaml.safe_load((ROOT / "conf" / "mini" / f"{source}.yaml").read_text()) | changes
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(conf))

    def start(self, *options: str) -> subprocess.Popen[str]:
        """A run that goes on, in a process group of its own."""
        command = ["./run.sh", "--backbone", "tiny", "--inference_config", "decode_tiny.yaml", "--python", sys.executable]
        command += ["--asr_config", "train_tiny.yaml", "--mole_config", "train_mole_tiny.yaml"]
        command += ["--student_config", "train_student_tiny.yaml", "--nj", "2"]
        command += ["--multilingual_config", "train_multilingual_tiny.yaml", "--full_config", "train_full_tiny.yaml"]
        command += ["--espnet_config", "train_espnet_tiny.yaml"]
        command += [*([] if "--langs" in options else ["--langs", "de tr"]), *options]
        env = os.environ | {"LOLE_ROOT": str(ROOT), "HF_HUB_OFFLINE": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=env, start_new_session=True, **pipes)

    def run(self, *options: str, fails: bool = False) -> str:
        with self.start(*options) as process:
            try:
                told = process.communicate(timeout=900)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
                raise
        assert (process.returncode != 0) == fails, told[-3000:]
        return told

    def adapters(self, tag: str) -> dict[str, dict[str, torch.Tensor]]:
        files = (self.folder / "exp" / f"lole_{tag}" / "adapters").glob("*/adapter_model.safetensors")
        return {file.parent.name: load_file(file) for file in files}

    def losses(self, tag: str, epoch: int) -> dict[tuple[str, str], float]:
        """Of an epoch's training and validation."""
        phases = read_checkpoint(self.folder / "exp" / f"lole_{tag}" / "checkpoint.pth")["reporter"]["stats"][epoch]
        return {(phase, key): float(v) for phase, values in phases.items() for key, v in values.items() if key.startswith("loss")}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    made = Recipe(tmp_path_factory.mktemp("recipe") / "asr1")
    subprocess.run(
        [sys.executable, "-m", "lole_mini.prepare", "--output", "data/lole_mini", "--langs", "de", "tr", "--scale", "0.1"],
        cwd=made.folder, check=True, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'local'}"},
    )  # fmt: skip
    made.run("--asr_tag", "straight", "--mole_tag", "mole", "--student_tag", "student")
    return made


def test_every_stage_leaves_its_results(recipe):
    table = (recipe.folder / "exp" / "RESULTS.md").read_text()
    assert "zero_shot" in table and "experts" in table
    with (recipe.folder / "exp" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    errors = {(r["system"], r["scenario"], r["language"]) for r in rows if r["metric"] == "wer_or_cer"}
    systems = [("experts", "aware"), *((s, sc) for s in ("zero_shot", "mole", "student") for sc in ("aware", "agnostic"))]
    assert errors >= {(*system, lang) for system in systems for lang in ("de", "tr", "average")}
    assert any(r["metric"] == "lid_accuracy" for r in rows)
    folders = list((recipe.folder / "exp").glob("*/decode_tiny_*/test_*"))
    assert len(folders) == 2 * len(systems)
    for folder in folders:
        ids = {
            name: [line.split()[0] for line in (folder / name).read_text().splitlines()] for name in ("text", "token", "score")
        }
        assert ids["text"] == ids["token"] == ids["score"]
    log = (recipe.folder / "exp" / "lole_straight" / "train.log").read_text()
    assert "parameters train" in log
    pictures = {file.name for file in (recipe.folder / "exp" / "lole_mole" / "images").iterdir()}
    assert {"fusion_weights.png", "lid_confusion.png"} <= pictures


def test_checkpoints_hold_only_experts(recipe):
    state = torch.load(recipe.folder / "exp" / "lole_straight" / "checkpoint.pth", weights_only=False)["model"]
    assert all(".lora_" in name or name == "backbone_fingerprint" for name in state)
    student = torch.load(recipe.folder / "exp" / "lole_student" / "checkpoint.pth", weights_only=False)["model"]
    assert student.keys() == state.keys()
    assert (recipe.folder / "exp" / "lole_student" / "merged" / "model.safetensors").is_file()
    state = torch.load(recipe.folder / "exp" / "lole_mole" / "checkpoint.pth", weights_only=False)["model"]
    assert {name.partition(".")[0] for name in state} == {"fusion", "classifier", "backbone_fingerprint", "experts_fingerprint"}


def test_resuming_changes_nothing(recipe):
    recipe.run(
        "--stage", "11", "--stop_stage", "11", "--asr_tag", "halves", "--systems", "experts", "--asr_args", "--max_epoch 1"
    )
    recipe.run("--stage", "11", "--stop_stage", "11", "--asr_tag", "halves", "--systems", "experts")
    check_same_adapters(recipe, "halves")


def check_same_adapters(recipe: Recipe, tag: str) -> None:
    straight, other = recipe.adapters("straight"), recipe.adapters(tag)
    assert set(straight) == set(other) == {"de", "tr"}
    for lang, tensors in straight.items():
        assert any(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)
        for name, tensor in tensors.items():
            torch.testing.assert_close(other[lang][name], tensor)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_training_and_the_same_command_goes_on(recipe, sent):
    """Ctrl-C goes to the recipe's process group, ``kill`` to its first process alone; the training is in a group of its own."""
    options = ["--stage", "11", "--stop_stage", "11", "--systems", "experts", "--asr_tag", sent.name]
    folder = recipe.folder / "exp" / f"lole_{sent.name}"
    with held(folder):
        assert f"expected exp/lole_{sent.name} for this process alone, got another" in recipe.run(*options, fails=True)
    assert not (folder / "config.yaml").exists()
    with recipe.start(*options) as process:
        while not (folder / "checkpoint.pth").exists():
            assert process.poll() is None
            time.sleep(0.05)
        (os.killpg if sent is signal.SIGINT else os.kill)(process.pid, sent)
        told = process.communicate(timeout=60)[0]
    assert process.returncode == -sent and "the training was ended: the same command goes on" in told
    for _ in range(100):  # until the training has let go of its folder
        try:
            with held(folder):
                break
        except BlockingIOError:
            time.sleep(0.1)
    else:
        pytest.fail("the training runs on")
    assert "1/2epoch started" not in recipe.run(*options)
    check_same_adapters(recipe, sent.name)


def kill_second_process(recipe: Recipe, tag: str, ended: threading.Event) -> None:
    """Wait for the first checkpoint of a training in two processes, or its end, then kill the process of rank 1."""
    while not (recipe.folder / "exp" / f"lole_{tag}" / "checkpoint.pth").exists() and not ended.wait(0.05):
        pass
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = (process / "cwd").readlink() == recipe.folder and b"\0RANK=1\0" in (process / "environ").read_bytes()
        except OSError:  # it ended, or is another user's
            continue
        if ours:
            os.kill(int(process.name), signal.SIGKILL)


def test_two_processes_train_as_one_and_go_on_when_one_was_killed(recipe):
    options = ["--nproc", "2", "--stage", "11", "--stop_stage", "11"]
    experts = [*options, "--systems", "experts", "--asr_tag", "two", "--asr_args", "--max_epoch 8"]
    ended = threading.Event()
    threading.Thread(target=kill_second_process, args=(recipe, "two", ended), daemon=True).start()
    try:
        told = recipe.run(*experts, fails=True)
    finally:
        ended.set()
    assert "training failed" in told and "Signal 9" in told
    recipe.run(*experts)
    log = (recipe.folder / "exp" / "lole_two" / "train.log").read_text()
    assert "The training was resumed" in log and "1/8epoch started" not in log and "8/8epoch started" in log
    tags = ["--asr_tag", "straight", "--mole_tag", "mole_two", "--student_tag", "student_two"]
    recipe.run(*options, "--systems", "mole student", *tags)
    for one, two in (("straight", "two"), ("mole", "mole_two"), ("student", "student_two")):
        for epoch in (1, 2):
            expected = recipe.losses(one, epoch)  # products may be in bfloat16
            assert recipe.losses(two, epoch) == pytest.approx(expected, rel=1e-3, abs=5e-3, nan_ok=True), (two, epoch)


def test_a_language_is_added_later(recipe):
    """Trained on de alone, then tr beside it: the expert of de keeps its bytes, tr is decoded by both systems."""
    tags = ["--asr_tag", "one", "--mole_tag", "mole_one", "--expdir", "exp_add"]
    recipe.run("--langs", "de", "--stage", "4", "--stop_stage", "11", "--systems", "experts mole", *tags)
    adapters = recipe.folder / "exp_add" / "lole_one" / "adapters"
    before = (adapters / "de" / "adapter_model.safetensors").read_bytes()
    told = recipe.run("--stage", "4", "--add_lang", "tr", "--systems", "zero_shot experts mole", *tags)
    assert "tr sounds most like de" in told
    assert (adapters / "de" / "adapter_model.safetensors").read_bytes() == before
    assert (adapters / "tr" / "adapter_model.safetensors").read_bytes() != before
    table = (recipe.folder / "exp_add" / "RESULTS.md").read_text()
    assert "|mole|agnostic|" in table and "test_tr" in table


def test_baselines_are_systems_like_the_others(recipe):
    told = recipe.run("--stage", "11", "--stop_stage", "11", "--systems", "full espnet", fails=True)
    assert "run stage 5 with --systems espnet" in told
    assert not (recipe.folder / "exp" / "lole_train_full_tiny_raw_lole_mini_seed0").exists()  # said before an hour of training
    systems = ["multilingual", "multilingual_r4", "full", "espnet"]
    recipe.run("--stage", "5", "--systems", " ".join(systems), "--expdir", "exp_base")
    exp = recipe.folder / "exp_base"
    state = torch.load(exp / "lole_train_full_tiny_raw_lole_mini_seed0" / "valid.acc.ave.pth", weights_only=True)
    merged = load_file(exp / "lole_train_full_tiny_raw_lole_mini_seed0" / "merged" / "model.safetensors")
    assert {f"backbone.model.{name}" for name in merged} - set(state) == {"backbone.model.model.encoder.embed_positions.weight"}
    before = load_file(recipe.folder / "tiny" / "model.safetensors")
    assert sum(not torch.equal(before[name], merged[name]) for name in merged) > 0.9 * len(merged)
    ranks = {f: load_file(f) for f in exp.glob("lole_train_multilingual_*/adapters/student/adapter_model.safetensors")}
    assert sorted(next(v for k, v in t.items() if "lora_A" in k).shape[0] for t in ranks.values()) == [2, 4]
    text = (exp / "RESULTS.md").read_text()
    assert all(f"|{system}|agnostic|" in text for system in systems) and "|espnet|aware|" not in text
    for folder in exp.glob("lole_train_*"):
        resources = json.loads((folder / "resources.json").read_text())
        assert resources["trained_parameters"] > 0 and resources["steps"] > 0 and resources["seconds"] > 0
        assert json.loads((folder / "decode_tiny_agnostic" / "resources.json").read_text())["parameters"] > 0


def test_mistakes_are_told(recipe):
    assert "expected systems of" in recipe.run("--systems", "nonsense", fails=True)
    assert "expected --nproc 1 with GPUs" in recipe.run("--nproc", "2", "--ngpu", "1", fails=True)
    assert "expected a number of processes" in recipe.run("--nproc", "none", fails=True)
    assert "expected an option" in recipe.run("--nonsense", "1", fails=True)
    assert "run stage" in recipe.run("--stage", "12", "--stop_stage", "12", "--asr_tag", "untrained", fails=True)

"""The whole recipe on a tiny random Whisper and a few synthetic utterances, through the shell scripts."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from recipes import ROOT, Recipe
from safetensors.torch import load_file

from espnet_lole.atomic_io import dir_lock
from espnet_lole.lole.peft_files import WEIGHTS
from espnet_lole.train.checkpoints import is_intact

pytestmark = pytest.mark.slow
WHISPER_PYTHON = ROOT / ".venv-espnet-whisper" / "bin" / "python"
BOTH = ("aware", "agnostic")
TRAIN = ["--stage", "11", "--stop_stage", "11"]
TRAIN_EXPERTS = [*TRAIN, "--systems", "experts"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    made = Recipe(tmp_path_factory.mktemp("recipe") / "asr1")
    prepare = "-m lole_mini.prepare --output data/lole_mini --langs de tr --scale 0.1".split()
    path = f"{ROOT}:{ROOT / 'local'}"
    subprocess.run([sys.executable, *prepare], cwd=made.folder, check=True, env=os.environ | {"PYTHONPATH": path})
    made.run()
    return made


def test_every_stage_leaves_its_results(recipe):
    table = (recipe.folder / "exp" / "RESULTS.md").read_text()
    assert "zero_shot" in table and "experts" in table and "./lole.sh" in table
    with (recipe.folder / "exp" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    errors = {(r["system"], r["scenario"], r["language"]) for r in rows if r["metric"] == "wer_or_cer"}
    systems = [(system, scenario) for system in ("zero_shot", "experts", "mole", "student") for scenario in BOTH]
    assert errors >= {(*system, lang) for system in systems for lang in ("de", "tr", "average")}
    assert any(r["metric"] == "lid_accuracy" for r in rows)
    folders = list((recipe.folder / "exp").glob("*/decode_tiny_*/test_*"))
    assert len(folders) == 2 * len(systems)
    for folder in folders:
        text, token, score = ((folder / name).read_text().splitlines() for name in ("text", "token", "score"))
        assert [x.split()[0] for x in text] == [x.split()[0] for x in token] == [x.split()[0] for x in score]
    assert "parameters train" in (recipe.experiment("experts") / "train.log").read_text()


def test_checkpoints_hold_only_what_is_trained(recipe):
    state = torch.load(recipe.experiment("experts") / "checkpoint.pth", weights_only=False)["model"]
    assert all(".lora_" in name or name == "backbone_fingerprint" for name in state)
    student = torch.load(recipe.experiment("student") / "checkpoint.pth", weights_only=False)["model"]
    assert all(".lora_" in name or name == "backbone_fingerprint" for name in student)
    state = torch.load(recipe.experiment("mole") / "checkpoint.pth", weights_only=False)["model"]
    assert not any(".lora_" in name for name in state)
    assert len(state) > 2 and recipe.adapters(recipe.experiment("student")).keys() == {"student"}


def test_packing_writes_one_file_per_trained_system(recipe):
    recipe.run("--stage", "14", "--skip_packing", "false", "--systems", "zero_shot experts mole")
    for system in ("experts", "mole"):
        folder = recipe.experiment(system)
        assert "config.yaml" in zipfile.ZipFile(folder / f"{folder.name}.zip").namelist()


def test_resuming_changes_nothing(recipe):
    recipe.run(*TRAIN_EXPERTS, "--asr_tag", "halves", "--asr_args", "--max_epoch 1")
    recipe.run(*TRAIN_EXPERTS, "--asr_tag", "halves")
    check_same_adapters(recipe, "halves")


def test_a_training_and_a_decoding_are_reported_as_what_they_are(recipe):
    """Another learning rate under the same name is refused; old hypotheses are not scored as those of new weights."""
    options = ["--systems", "experts", "--expdir", "exp_again", "--asr_args"]
    recipe.run("--stage", "11", *options, "--max_epoch 1")
    printed = recipe.run("--stage", "11", *options, "--max_epoch 1 --optim_conf lr=0.5", fails=True)
    assert "exp_again/lole_tiny_experts_raw_lole_mini_seed0 holds another training: optim_conf.lr: " in printed
    experiment = recipe.experiment("experts", "exp_again")
    assert "1/1epoch started" in (experiment / "train.log").read_text() and not (experiment / "train.1.log").exists()
    recipe.run(*TRAIN, *options, "--max_epoch 1 --optim_conf lr=0.5", "--resume", "false")
    for folder in (experiment, experiment.with_name(f"{experiment.name}.1")):
        assert recipe.adapters(folder).keys() == {"de", "tr"}
    recipe.run("--stage", "12", "--stop_stage", "12", *options, "")
    assert "is left out" not in recipe.run("--stage", "13", *options, "")
    shutil.copy(experiment / "adapters/de" / WEIGHTS, experiment / "adapters/tr" / WEIGHTS)
    assert "was decoded before exp_again/" in recipe.run("--stage", "13", *options, "", fails=True)


def check_same_adapters(recipe: Recipe, tag: str) -> None:
    straight = recipe.adapters(recipe.experiment("experts"))
    other = recipe.adapters(recipe.folder / "exp" / f"lole_{tag}")
    assert set(straight) == set(other) == {"de", "tr"}
    for lang, tensors in straight.items():
        assert any(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)
        for name, tensor in tensors.items():
            torch.testing.assert_close(other[lang][name], tensor)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_training_and_the_same_command_resumes_it(recipe, sent):
    """Ctrl-C goes to the recipe's process group, `kill` to its first process; the training is in a group of its own."""
    options = [*TRAIN_EXPERTS, "--asr_tag", sent.name]
    folder = recipe.folder / "exp" / f"lole_{sent.name}"
    with dir_lock(folder):
        assert f"exp/lole_{sent.name}" in recipe.run(*options, fails=True).split("training failed: ")[1]
    assert not (folder / "config.yaml").exists()
    with recipe.start(*options) as process:
        while not is_intact(folder / "checkpoint.pth"):
            assert process.poll() is None
            time.sleep(0.05)
        (os.killpg if sent is signal.SIGINT else os.kill)(process.pid, sent)
        printed = process.communicate(timeout=60)[0]
    assert process.returncode == -sent and "stopped: the same command resumes a training from its last epoch" in printed
    for _ in range(100):  # until the training has released its folder
        try:
            with dir_lock(folder):
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


def test_two_processes_train_as_one_and_resume_when_one_was_killed(recipe):
    two = [*TRAIN, "--num_nodes", "2"]
    experts = [*two, "--systems", "experts", "--asr_tag", "two", "--asr_args", "--max_epoch 8"]
    ended = threading.Event()
    threading.Thread(target=kill_second_process, args=(recipe, "two", ended), daemon=True).start()
    try:
        printed = recipe.run(*experts, fails=True)
    finally:
        ended.set()
    assert re.search(r"training failed: .*Signal [69] ", printed), printed  # 6: the other process, which gloo aborts
    recipe.run(*experts)
    log = (recipe.folder / "exp" / "lole_two" / "train.log").read_text()
    assert "The training was resumed" in log and "1/8epoch started" not in log and "8/8epoch started" in log
    for system in ("mole", "student"):
        recipe.run(*two, "--systems", system, "--asr_tag", f"{system}_two")
    for system, tag in (("experts", "two"), ("mole", "mole_two"), ("student", "student_two")):
        for epoch in (1, 2):
            expected = recipe.losses(recipe.experiment(system), epoch)  # products may be in bfloat16
            losses = recipe.losses(recipe.folder / "exp" / f"lole_{tag}", epoch)
            assert losses == pytest.approx(expected, rel=1e-3, abs=5e-3, nan_ok=True), (tag, epoch)


def test_a_language_is_added_later(recipe):
    """Experts and MoLE are trained on de, then tr is added: the adapter of de stays, both systems decode tr."""
    stages = ["--stage", "4", "--stop_stage", "11"]
    recipe.run("--langs", "de", *stages, "--systems", "experts mole", "--expdir", "exp_add")
    experts, mole = (recipe.experiment(system, "exp_add") for system in ("experts", "mole"))
    before = (experts / "adapters" / "de" / "adapter_model.safetensors").read_bytes()
    options = ["--experts", f"exp_add/{experts.name}", "--mole", f"exp_add/{mole.name}", "--stage", "4"]
    corpus = ["--corpus", "conf/corpora/lole_mini.yaml"]
    printed = recipe.run("--lang", "tr", *corpus, *options, script="run_add_language.sh")
    assert "The expert of tr starts from that of de" in printed
    assert (experts / "adapters" / "de" / "adapter_model.safetensors").read_bytes() == before
    assert (experts / "adapters" / "tr" / "adapter_model.safetensors").read_bytes() != before
    table = (recipe.folder / "exp_add" / "RESULTS.md").read_text()
    assert "|mole|agnostic|" in table and "test_tr" in table


BASELINES = ["--systems", "", "--expdir", "exp_base", "--asr_config", "tiny.yaml", "--backbone", "tiny", "--nbpe", "60"]


def check_resources(experiment: Path, scenario: str) -> None:
    resources = json.loads((experiment / "resources.json").read_text())
    assert resources["trained_parameters"] > 0 and resources["steps"] > 0 and resources["seconds"] > 0
    assert json.loads((experiment / f"decode_tiny_{scenario}" / "resources.json").read_text())["parameters"] > 0


def test_baselines_are_systems_like_the_others(recipe):
    baselines = ["multilingual", "multilingual_r64", "full", "espnet"]
    recipe.run(*BASELINES, "--baselines", " ".join(baselines), script="run_baselines.sh")
    tuned = load_file(recipe.experiment("full", "exp_base") / "whisper" / "model.safetensors")
    before = load_file(recipe.folder / "tiny" / "model.safetensors")
    assert sum(not torch.equal(before[name], tuned[name]) for name in tuned) > 0.9 * len(tuned)
    for system, rank in (("multilingual", 2), ("multilingual_r64", 4)):
        tensors = recipe.adapters(recipe.experiment(system, "exp_base"))["student"]
        assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {rank}
    text = (recipe.folder / "exp_base" / "RESULTS.md").read_text()
    assert all(f"|{system}|agnostic|" in text for system in baselines) and "|espnet|aware|" not in text
    for system in baselines:
        check_resources(recipe.experiment(system, "exp_base"), "agnostic")
    config = yaml.safe_load((recipe.experiment("espnet", "exp_base") / "config.yaml").read_text())
    assert len(config["token_list"]) == 60 and config["token_list"][2:4] == ["[de]", "[tr]"]


@pytest.mark.skipif(not WHISPER_PYTHON.exists(), reason="make env-espnet-whisper was not run")
def test_espnets_own_whisper_trains_its_lora_on_the_backbone(recipe):
    """Stock asr_train trains the LoRA alone: without it, all weights are the backbone's."""
    options = ["--baselines", "espnet_whisper", "--whisper_python", str(WHISPER_PYTHON)]
    recipe.run(*BASELINES, *options, script="run_baselines.sh")
    experiment = recipe.experiment("espnet_whisper", "exp_base")
    backbone = torch.load(recipe.folder / "dump" / "espnet_whisper" / "tiny.pt")["model_state_dict"]
    trained = torch.load(experiment / "valid.acc.ave.pth")
    lora = {name: weight for name, weight in trained.items() if ".lora_" in name}
    assert len(lora) == 2 * 4 * (3 + 2 * 2) and all(weight.any() for weight in lora.values())
    for name, weight in backbone.items():
        part, _, rest = name.partition(".")
        key = f"{part}.{part}s.{rest}"
        a, b = (lora.get(f"{key.removesuffix('weight')}lora_{factor}") for factor in "AB")
        update = 0 if a is None else 2 * b @ a  # loralib saves the merged weight; alpha is twice the rank
        torch.testing.assert_close(trained[key], weight + update)
    resources = json.loads((experiment / "resources.json").read_text())
    assert resources["trained_parameters"] == sum(weight.numel() for weight in lora.values())
    for scenario in BOTH:
        check_resources(experiment, scenario)
        assert f"|espnet_whisper|{scenario}|" in (recipe.folder / "exp_base" / "RESULTS.md").read_text()


def test_a_system_that_is_not_trained_is_named(recipe):
    options = ["--stage", "12", "--stop_stage", "12", "--systems", "experts", "--asr_tag", "untrained"]
    assert "decoding failed" in (printed := recipe.run(*options, fails=True)) and "exp/lole_untrained" in printed

"""A folder that holds a training is used for the same training only; what differs is named."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import random_experts, tiny_whisper

from espnet_lole.data.kaldi import write_table
from espnet_lole.evaluation.decodings import TRAINING
from espnet_lole.evaluation.resources import RESOURCES
from espnet_lole.lole.adapters import save_adapter
from espnet_lole.tasks.lole import LoLETask
from espnet_lole.train.record import describe, training_folder

LANGS = ("de", "tr")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Data, a backbone, and experts."""
    folder = tmp_path_factory.mktemp("record")
    tiny_whisper().save_pretrained(folder / "tiny")
    save_experts(folder)
    for part in ("train", "dev"):
        (folder / part).mkdir()
        for name in ("a", "b"):
            noise = np.random.default_rng(ord(name)).normal(0, 0.1, 8000)
            soundfile.write(folder / part / f"{name}.flac", noise, 16000)
        tables = {"text": {"a": "ja", "b": "nein"}, "utt2lang": {"a": "de", "b": "tr"}}
        for name, table in (tables | {"utt2num_samples": {"a": 8000, "b": 8000}}).items():
            write_table(folder / part / name, table)
    return folder


@pytest.fixture
def data(made, tmp_path) -> Path:
    """The same in a folder of its own."""
    shutil.copytree(made, tmp_path / "data")
    for part in ("train", "dev"):
        audio = {name: str(tmp_path / "data" / part / f"{name}.flac") for name in ("a", "b")}
        write_table(tmp_path / "data" / part / "wav.scp", audio)
    return tmp_path / "data"


def save_experts(folder: Path, seed: int = 0, alpha: float = 4.0) -> None:
    experts = random_experts(LANGS, rank=2, seed=seed, alpha=alpha)
    for lang in LANGS:
        save_adapter(experts, lang, folder / "experts" / lang, "tiny")


def options(data: Path, *more: str) -> list[str]:
    """Return the options of a training of MoLE."""
    given = ["--system", "mole", "--backbone", str(data / "tiny"), "--langs", *LANGS, "--ngpu", "0", "--resume", "true"]
    given += ["--experts", str(data / "experts"), "--fusion_conf", "shared_layers=1", "--optim_conf", "lr=0.1"]
    given += ["--output_dir", str(data / "exp" / "mole"), "--max_epoch", "3"]
    for part, name in (("train", "train"), ("valid", "dev")):
        given += [f"--{part}_shape_file", str(data / name / "utt2num_samples")]
        for file in ("wav.scp,speech,sound", "text,text,text", "utt2lang,lang,text"):
            given += [f"--{part}_data_path_and_name_and_type", str(data / name / file)]
    return [*given, *more]


def start(data: Path, *more: str, finish: bool = True) -> Path:
    """Start a training, and leave a checkpoint as if it had ended."""
    args = LoLETask.parse_args(options(data, *more))
    with training_folder(args):
        Path(args.output_dir, "checkpoint.pth").touch()
        if finish:
            Path(args.output_dir, RESOURCES).touch()
    return Path(args.output_dir)


MACHINE = ["--num_workers 5", "--log_interval 3", "--use_tensorboard false", "--activation_checkpointing true"]


@pytest.mark.parametrize("more", ["", "--max_epoch 4", *MACHINE])
def test_the_same_training_goes_on_whatever_the_machine_and_the_logs(data, more):
    start(data)
    folder = start(data, *more.split(), finish=False)
    assert (folder / RESOURCES).exists() == ("max_epoch" not in more)  # more epochs are to come


def test_data_that_were_prepared_again_are_the_same(data):
    """Files have other dates, places and orders of lines then."""
    recorded = (start(data) / TRAINING).read_bytes()
    shutil.move(data / "train" / "b.flac", data / "b.flac")
    wav, text = data / "train" / "wav.scp", data / "train" / "text"
    wav.write_text(f"a {data}/train/a.flac\nb {data}/b.flac\n")
    text.write_text("b nein\na ja\n")
    save_experts(data)
    assert (start(data) / TRAINING).read_bytes() == recorded


OPTIONS = {
    "--optim_conf lr=0.2": "optim_conf.lr: 0.1, now 0.2",
    "--optim_conf weight_decay=0.5": "optim_conf.weight_decay: not given, now 0.5",
    "--seed 7": "seed: 0, now 7",
    "--langs tr de": r"langs: \['de', 'tr'\], now \['tr', 'de'\]",
    "--max_epoch 2": "max_epoch: 3, now 2",
    "--batch_bins 7": "batch_bins: 1000000, now 7",
    "--fusion_conf shared_layers=2": "fusion_conf.shared_layers: 1, now 2",
    "--system student": "system: mole, now student",
    "--init_mole nowhere": "init_mole.mole.safetensors: not given, now missing",
}


@pytest.mark.parametrize("more", OPTIONS)
def test_other_options_are_refused_by_name_with_both_values(data, more):
    folder = start(data)
    before = (folder / TRAINING).read_bytes()
    with pytest.raises(ValueError, match=f"exp/mole holds another training: .*{OPTIONS[more]}.*--resume false"):
        start(data, *more.split())
    assert (folder / TRAINING).read_bytes() == before and (folder / RESOURCES).exists()


def grow(data: Path) -> None:
    for name, value in (("wav.scp", data / "train" / "a.flac"), ("text", "ja"), ("utt2lang", "de")):
        with (data / "train" / name).open("a") as file:
            file.write(f"c {value}\n")


def replace_audio(data: Path) -> None:
    """The same ids and lengths: one sample in the middle differs."""
    file = data / "train" / "a.flac"
    samples, rate = soundfile.read(file, dtype="int16")
    samples[4000] += 1
    soundfile.write(file, samples, rate)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "more utterances": (grow, "train data.utterances: 2, now 3[.] Train under"),
    "other audio": (replace_audio, "train data.audio: [^;]*[.] Train under"),
    "another text": (
        lambda d: (d / "dev" / "text").write_text("a ja\nb nee\n"),
        "valid data.text: [^;]*[.] Train under",
    ),
    "another language": (lambda d: (d / "dev" / "utt2lang").write_text("a tr\nb tr\n"), "valid data.lang: "),
    "another backbone": (lambda d: tiny_whisper(seed=1).save_pretrained(d / "tiny"), "backbone.model.safetensors: "),
    "experts trained again": (lambda d: save_experts(d, seed=1), "experts.de adapter_model.safetensors: "),
    "experts of another scale": (lambda d: save_experts(d, alpha=8.0), "experts.de adapter_config.json: "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_and_weights_are_refused(data, change):
    folder = start(data)
    CHANGES[change][0](data)
    with pytest.raises(ValueError, match=f"exp/mole holds another training: {CHANGES[change][1]}"):
        start(data)
    (folder / "checkpoint.pth").unlink()  # nothing was trained
    start(data)


def test_a_schedule_over_all_epochs_is_of_their_number(data):
    student = ["--system", "student", "--kd_conf", "final_factor=0.1"]
    start(data, *student)
    with pytest.raises(ValueError, match="max_epoch: 3, now 4"):
        start(data, *student, "--max_epoch", "4")


def test_a_training_without_a_record_is_not_taken_for_this_one(data):
    folder = start(data)
    for content in (None, "{", "[]"):
        (folder / TRAINING).unlink() if content is None else (folder / TRAINING).write_text(content)
        with pytest.raises(ValueError, match="training.json is missing or broken, so that it is unknown what was"):
            start(data)


def test_a_training_does_not_go_on_in_another_release_of_espnet(data):
    args = LoLETask.parse_args(options(data))
    args.version = "202511"
    with training_folder(args):
        Path(args.output_dir, "checkpoint.pth").touch()
    args.version = "202611"
    with pytest.raises(ValueError, match="holds another training: release of ESPnet: 202511, now 202611[.]"):
        with training_folder(args):
            pass


def test_trained_again_when_asked_the_old_training_is_moved_aside(data):
    for number in (1, 2):
        folder = start(data, "--optim_conf", f"lr={number}", "--resume", "false")
        (folder / "train.log").write_text("the present log")
        (folder / "decode").mkdir()
    old = folder.with_name("mole.1")
    assert {p.name for p in old.iterdir()} == {TRAINING, RESOURCES, "checkpoint.pth", "decode"}
    assert json.loads((old / TRAINING).read_text())["optim_conf"] == {"lr": 1}
    assert (folder / "train.log").exists()
    start(data, "--optim_conf", "lr=3", "--resume", "false")
    assert json.loads((folder.with_name("mole.2") / TRAINING).read_text())["optim_conf"] == {"lr": 2}


def test_the_record_of_espnet_s_own_model_has_its_data(data):
    given = {"seed": 0, "train_shape_file": [], "valid_shape_file": [], "valid_data_path_and_name_and_type": []}
    given["train_data_path_and_name_and_type"] = [(f"{data}/train/wav.scp", "speech", "sound")]
    described = describe(argparse.Namespace(**given, ngpu=0))
    assert (
        described.keys() == {"seed", "train data", "release of ESPnet"} and described["train data"]["utterances"] == 2
    )

"""Experts are exported from the epochs at which each was best."""

import pytest
import torch
import yaml
from conftest import tiny_whisper
from safetensors.torch import load_file

from espnet_lole.bin.lole_export import main as export
from espnet_lole.tasks.lole import LoLETask

LAYER = "model.decoder.layers.1.fc1"


@pytest.fixture
def training(tmp_path):
    """A folder as a training of two experts leaves it: de was best after epoch 1, tr and both together after epoch 2."""
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    options = ["--backbone", str(tmp_path / "tiny"), "--langs", "de", "tr", "--output_dir", str(tmp_path)]
    args = LoLETask.get_parser().parse_args([*options, "--expert_conf", "rank=2"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    model = LoLETask.build_model(args)
    for epoch in (1, 2):
        for layer in model.bank.layers.values():
            torch.nn.init.constant_(layer.lora_B, epoch)
        torch.save(model.state_dict(), tmp_path / f"{epoch}epoch.pth")
    for figure, epoch in {"acc": 2, "acc_de": 1, "acc_tr": 2}.items():
        (tmp_path / f"valid.{figure}.ave_1best.pth").symlink_to(f"{epoch}epoch.pth")
        (tmp_path / f"valid.{figure}.ave.pth").symlink_to(f"valid.{figure}.ave_1best.pth")
    return tmp_path


@pytest.mark.parametrize(
    ("checkpoint", "epochs"),
    [
        ("valid.acc.ave.pth", {"de": 1, "tr": 2}),
        ("valid.acc.ave_1best.pth", {"de": 1, "tr": 2}),
        ("2epoch.pth", {"de": 2, "tr": 2}),
    ],
)
def test_each_expert_comes_from_its_own_best_epoch(training, checkpoint, epochs):
    export(["--asr_model_file", str(training / checkpoint), "--output_dir", str(training / "adapters")])
    for lang, epoch in epochs.items():
        weights = load_file(training / "adapters" / lang / "adapter_model.safetensors")
        assert (weights[f"base_model.model.{LAYER}.lora_B.weight"] == epoch).all()


def test_a_language_without_a_best_epoch_of_its_own_has_that_of_all(training):
    for file in training.glob("valid.acc_de.*"):
        file.unlink()
    export(["--asr_model_file", str(training / "valid.acc.ave.pth"), "--output_dir", str(training / "adapters")])
    weights = load_file(training / "adapters" / "de" / "adapter_model.safetensors")
    assert (weights[f"base_model.model.{LAYER}.lora_B.weight"] == 2).all()

"""Folders of trained systems, as the recipe leaves them, on the tiny random Whisper."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from conftest import random_experts, tiny_whisper

from espnet_lole.espnet_mole_model import ESPnetMoLEModel
from espnet_lole.export.whisper import save_merged
from espnet_lole.lole.adapters import save_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.lole.mole import MoLE
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

CODES = ("de", "en", "fr", "zh")


def make_recipe(folder: Path) -> Path:
    """A recipe's folder with a backbone and the experiments ``exp/{experts,mole,student}``; their configs have its paths."""
    tiny_whisper().save_pretrained(folder / "tiny")
    backbone = Backbone(tiny_whisper()).eval()
    bank = random_experts(ExpertBank(backbone.model, CODES, ExpertConfig(rank=4, alpha=8.0)))
    for lang in CODES:
        save_expert(bank, lang, folder / "exp" / "experts" / "adapters" / lang, "tiny")
    common = {
        "backbone": "tiny",
        "window": "short",
        "precision": "float32",
        "langs": list(CODES),
        "experts": "exp/experts/adapters",
    }
    _write(folder, "experts", common)

    torch.manual_seed(1)
    fusion, classifier = {"shared_layers": 2}, {"hidden": 8}
    mole = MoLE(backbone, bank, FusionConfig(**fusion), ClassifierConfig(**classifier))
    torch.nn.init.normal_(mole.fusion.raw)
    torch.nn.init.normal_(mole.classifier.mlp[-1].weight)
    _write(folder, "mole", common | {
        "fusion_conf": fusion, "classifier_conf": classifier, "best_model_criterion": [["valid", "loss", "min"]],
        "lid_weight": 1.0, "lid_class_weights": {}, "mole_start": None, "checkpointing": False, "specaug_conf": {},
    })  # fmt: skip
    torch.save(ESPnetMoLEModel(mole, WhisperTokens(51865), 1.0).state_dict(), folder / "exp" / "mole" / "valid.loss.ave.pth")

    student = random_experts(ExpertBank(tiny_whisper(), ["student"], ExpertConfig(rank=6, alpha=6.0)), seed=2)
    _write(folder, "student", common)
    save_expert(student, "student", folder / "exp" / "student" / "adapters" / "student", "tiny")
    save_merged(tiny_whisper(), folder / "exp" / "student" / "adapters" / "student", folder / "exp" / "student" / "merged", CODES)
    return folder


def _write(folder: Path, system: str, conf: dict) -> None:
    (folder / "exp" / system).mkdir(parents=True, exist_ok=True)
    (folder / "exp" / system / "config.yaml").write_text(yaml.safe_dump({"system": system} | conf))

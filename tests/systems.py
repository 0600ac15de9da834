"""Folders of trained systems, as trainings leave them, on the tiny random Whisper."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml
from conftest import random_experts, tiny_whisper

from espnet_lole.lole.adapters import save_adapter
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts
from espnet_lole.lole.language_classifier import ClassifierConfig
from espnet_lole.lole.mole import FusionConfig, MoLE
from espnet_lole.lole.mole_weights import MOLE_WEIGHTS, save_trained
from espnet_lole.whisper.checkpoint import load_whisper
from lole_mini.speech import split_texts, utterances

CODES = ("de", "en", "fr", "zh")


def make_recipe(folder: Path) -> Path:
    """Write a recipe's folder with a backbone and the experiments ``exp/{experts,mole,student}``."""
    tiny_whisper().save_pretrained(folder / "tiny")
    common = {"backbone": "tiny", "pad_to": "none", "share_30s": 0.5, "precision": "float32", "langs": list(CODES)}
    prepared = common | {"experts": "exp/experts/adapters"}

    experts = random_experts(CODES)
    _write_config(folder, "experts", common)
    for lang in CODES:
        save_adapter(experts, lang, folder / "exp" / "experts" / "adapters" / lang, "tiny")

    torch.manual_seed(1)
    fusion, classifier = {"shared_layers": 2}, {"hidden": 8}
    mole = MoLE(experts, FusionConfig(**fusion), ClassifierConfig(**classifier))
    for layer in mole.frontend.fused.values():
        torch.nn.init.normal_(layer.logits)
    torch.nn.init.normal_(mole.frontend.classifier.mlp[-1].weight)
    parts = {"fusion_conf": fusion, "classifier_conf": classifier, "system_conf": {"lid_weight": 1.0}}
    _write_config(folder, "mole", prepared | parts | {"best_model_criterion": [["valid", "loss", "min"]]})
    save_trained(mole, folder / "exp" / "mole" / MOLE_WEIGHTS)

    _write_config(folder, "student", prepared)
    student = random_experts(("student",), rank=6, alpha=6.0, seed=2)
    save_adapter(student, "student", folder / "exp" / "student" / "adapters" / "student", "tiny")
    return folder


def make_spoken_student(folder: Path, pad_to: str = "30s", share_30s: float = 0.0) -> Path:
    """Write the folder of a student on the embedded backbone, near enough to it to know synthetic speech."""
    nano = str(Path("models/whisper-nano").resolve())
    experts = LoRAExperts(load_whisper(nano, pad_to, share_30s=share_30s), ["student"], ExpertConfig(rank=4, alpha=8.0))
    torch.manual_seed(0)
    for layer in experts.layers.values():
        torch.nn.init.normal_(layer.lora_B["student"], std=0.003)
    save_adapter(experts, "student", folder / "adapters" / "student", nano)
    conf = {
        "system": "student",
        "backbone": nano,
        "langs": ["de", "fr", "zh"],
        "pad_to": pad_to,
        "share_30s": share_30s,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(conf))
    return folder


@cache
def speak() -> list[tuple[str, np.ndarray]]:
    """Return languages and utterances (S,), from a new process: eSpeak's speech depends on what it spoke before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_speak).result()


def _speak() -> list[tuple[str, np.ndarray]]:
    texts = {lang: split_texts("atlas", lang, {"test": 2})["test"] for lang in ("de", "fr", "zh")}
    spoken = {lang: utterances("atlas", "test", lang, texts[lang], 1) for lang in texts}
    return [(lang, utterance.speech.astype(np.float32)) for lang in spoken for utterance in spoken[lang]]


def _write_config(folder: Path, system: str, conf: dict) -> None:
    (folder / "exp" / system).mkdir(parents=True, exist_ok=True)
    (folder / "exp" / system / "config.yaml").write_text(yaml.safe_dump({"system": system} | conf))

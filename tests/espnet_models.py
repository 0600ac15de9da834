"""The models that ESPnet trains, on the tiny random Whisper."""

from __future__ import annotations

from typing import Any

import torch
from conftest import random_experts, tiny_whisper

from espnet_lole.espnet_model import (
    AbsLoLEModel,
    ESPnetExpertsModel,
    ESPnetFullModel,
    ESPnetMoLEModel,
    ESPnetStudentModel,
)
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts, share_weights
from espnet_lole.lole.kd import STUDENT, KDConfig, LoRAKD
from espnet_lole.lole.language_classifier import ClassifierConfig
from espnet_lole.lole.mole import FusionConfig, MoLE
from espnet_lole.whisper.model import Whisper

CODES = ("de", "en", "fr", "zh")
"""Languages of the models; the fixture ``speech`` has no French."""


def experts_model(
    langs: tuple[str, ...] = CODES,
    seed: int = 0,
    rank: int = 4,
    width: int = 16,
    precision: torch.dtype = torch.float32,
) -> ESPnetExpertsModel:
    """Return new experts, whose B is zero."""
    whisper = Whisper(tiny_whisper(seed, width=width), precision=precision).eval()
    return ESPnetExpertsModel(LoRAExperts(whisper, langs, ExpertConfig(rank=rank, alpha=2.0 * rank)), langs)


def mole_model(
    seed: int = 0,
    shared_layers: int = 2,
    lid_weight: float = 0.5,
    precision: torch.dtype = torch.float32,
    **classifier: Any,
) -> ESPnetMoLEModel:
    """Return a new MoLE on random experts."""
    experts = random_experts(CODES, seed=seed, whisper=Whisper(tiny_whisper(), precision=precision).eval())
    torch.manual_seed(0)
    mole = MoLE(experts, FusionConfig(shared_layers), ClassifierConfig(hidden=8, dropout=0.0, **classifier))
    return ESPnetMoLEModel(mole, CODES, lid_weight)


def student_model(
    teacher: bool = True, rank: int = 4, precision: torch.dtype = torch.float32, **kd: Any
) -> ESPnetStudentModel:
    """Return a new student, by default of random experts."""
    whisper = Whisper(tiny_whisper(), precision=precision).eval()
    experts = random_experts(CODES, whisper=share_weights(whisper)) if teacher else None
    student = LoRAExperts(whisper, [STUDENT], ExpertConfig(rank=rank, alpha=2.0 * rank))
    return ESPnetStudentModel(LoRAKD(student, experts, KDConfig(**kd)), CODES)


def full_model(seed: int = 0) -> ESPnetFullModel:
    """Return a Whisper to train as a whole."""
    return ESPnetFullModel(Whisper(tiny_whisper(seed)).eval(), CODES)


def trained(model: AbsLoLEModel) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


ADAPTED = {"experts": experts_model, "mole": mole_model, "student": student_model}
"""System with adapters -> what builds its model."""

"""The one builder of systems, for training, decoding, estimates, benchmarks and tests."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from espnet_lole.config import load_yaml, read_conf
from espnet_lole.lole.adapters import (
    FOREIGN_PAD_TO,
    Adapter,
    build_experts,
    load_adapter,
    load_adapters,
    trained_pad_to,
    trained_share_30s,
)
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts, share_weights
from espnet_lole.lole.kd import STUDENT, KDConfig, LoRAKD, init_from_average
from espnet_lole.lole.language_classifier import ClassifierConfig
from espnet_lole.lole.mole import FusionConfig, MoLE
from espnet_lole.lole.mole_weights import MOLE_WEIGHTS, extend_trained, load_trained, read_trained
from espnet_lole.systems import TRAINED_HERE
from espnet_lole.whisper.checkpoint import load_whisper
from espnet_lole.whisper.model import Whisper, silence_samples

STUDENT_INITS = ("average", "random")
"""How a student starts: as the average of the experts, or from random weights."""

_PARTS = {
    "expert_conf": ExpertConfig,
    "fusion_conf": FusionConfig,
    "classifier_conf": ClassifierConfig,
    "kd_conf": KDConfig,
}


@dataclass(frozen=True)
class SystemConfig:
    """What a system is built from.

    Attributes:
        system: ``zero_shot`` or one of ``TRAINED_HERE``.
        backbone: hub name, folder or ``.pt`` file of the Whisper.
        langs: languages, an expert each.
        pad_to: length of the input; None: as the backbone was trained.
        share_30s: share of the training batches that are padded to 30 s instead.
        precision: of the matrix products.
        activation_checkpointing: compute layers again in the backward pass.
        experts: mole, student: folder of the prepared experts' adapters.
        adapters: trained weights to load: experts: folder of their adapters; student, multilingual: its one adapter.
        expert_conf: shape of the experts, or of the one LoRA for all languages.
        init_expert: experts: an adapter that they start from.
        fusion_conf: mole: how the shallow layers are merged.
        classifier_conf: mole: the language classifier.
        mole_weights: mole: trained fusion weights and classifier to load.
        init_mole: mole: folder of a MoLE of fewer languages to start from.
        kd_conf: student: losses of distillation.
        student_init: student: ``average`` or ``random``.
        seed: of random weights.
    """

    system: str
    backbone: str
    langs: tuple[str, ...]
    pad_to: str | None = None
    share_30s: float = 0.0
    precision: str = "float32"
    activation_checkpointing: bool = False
    experts: Path | None = None
    adapters: Path | None = None
    expert_conf: ExpertConfig = field(default_factory=ExpertConfig)
    init_expert: Path | None = None
    fusion_conf: FusionConfig | None = None
    classifier_conf: ClassifierConfig = field(default_factory=ClassifierConfig)
    mole_weights: Path | None = None
    init_mole: Path | None = None
    kd_conf: KDConfig = field(default_factory=KDConfig)
    student_init: str = "average"
    seed: int = 0

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> SystemConfig:
        """Read the options of a training or the mapping of its ``config.yaml``; other keys are ignored.

        Raises:
            ValueError: an unknown system, or an unknown key or a wrong value in one of its parts.
        """
        values = {f.name: options[f.name] for f in fields(cls) if options.get(f.name) is not None}
        values["langs"] = tuple(values.get("langs", ()))
        for name, kind in _PARTS.items():
            if name in values and (name != "fusion_conf" or options.get("system") == "mole"):
                values[name] = read_conf(kind, values[name], name)
        for name in ("experts", "adapters", "init_expert", "mole_weights", "init_mole"):
            if name in values:
                values[name] = Path(values[name])
        return cls(**values)

    def __post_init__(self) -> None:
        if self.system not in ("zero_shot", *TRAINED_HERE):
            raise ValueError(f"expected a system of zero_shot {' '.join(TRAINED_HERE)}, got {self.system!r}")
        if self.student_init not in STUDENT_INITS:
            raise ValueError(f"expected student_init: {' or '.join(STUDENT_INITS)}, got {self.student_init!r}")


def build_system(config: SystemConfig, whisper: Whisper | None = None, empty_rank: int | None = None) -> nn.Module:
    """Build a system on its backbone.

    Args:
        config: what to build.
        whisper: the backbone; None: loaded as the configuration says.
        empty_rank: build the prepared experts of MoLE or a student new, of this rank, instead of reading their folder.

    Returns:
        ``LoRAExperts``, ``MoLE``, ``LoRAKD`` (also for ``multilingual``), or the ``Whisper`` itself.

    Raises:
        FileNotFoundError: the backbone or a language's adapter is missing.
        ValueError: parts do not fit together, or a folder of experts is needed and not given.
    """
    if whisper is None:
        whisper = load_whisper(config.backbone, config.pad_to, config.precision, config.share_30s)
    if config.system == "experts":
        system = _build_experts(config, whisper)
    elif config.system == "mole":
        system = _build_mole(config, _prepared_experts(config, whisper, empty_rank))
    elif config.system in ("student", "multilingual"):
        system = _build_student(config, whisper, empty_rank)
    else:
        system = whisper
    if config.activation_checkpointing:
        _checkpoint_activations(system)
    return system


def _build_experts(config: SystemConfig, whisper: Whisper) -> LoRAExperts:
    """Build new experts, from random weights or an adapter, or load trained ones."""
    if config.adapters is not None:
        return load_adapters(whisper, config.adapters, config.langs)
    experts = LoRAExperts(whisper, config.langs, config.expert_conf, config.seed)
    if config.init_expert is not None:
        adapter = Adapter.read(config.init_expert)
        for lang in config.langs:
            load_adapter(experts, lang, adapter)
    return experts


def _prepared_experts(config: SystemConfig, whisper: Whisper, empty_rank: int | None) -> LoRAExperts:
    """Load the experts that MoLE and a student are built on."""
    if empty_rank is not None:
        return LoRAExperts(whisper, config.langs, ExpertConfig(rank=empty_rank))
    if config.experts is None:
        raise ValueError("expected --experts, the folder of the languages' adapters, got none: train the experts first")
    experts = load_adapters(whisper, config.experts, config.langs)
    check_paddings(config.experts, config.langs, whisper.pad_to)
    return experts


def check_paddings(folder: Path, languages: Sequence[str], pad_to: str) -> None:
    """Check that prepared experts were trained on the input that a system built on them has.

    Args:
        folder: of the experts' adapters.
        languages: of the experts.
        pad_to: padding of the system's input.

    Raises:
        ValueError: an expert was trained with another padding, and none of its batches with this one.
    """
    for adapter in (folder / lang for lang in languages):
        trained = trained_pad_to(adapter)
        known = {silence_samples(trained)} | ({silence_samples("30s")} if trained_share_30s(adapter) else set())
        if silence_samples(pad_to) not in known:
            raise ValueError(
                f"expected experts trained with pad_to: {pad_to}, as this system is, but {adapter} was trained with "
                f"{trained} ({FOREIGN_PAD_TO} where an adapter notes nothing): set pad_to: {trained}, or train the "
                "experts again"
            )


def _build_mole(config: SystemConfig, experts: LoRAExperts) -> MoLE:
    """Build MoLE on prepared experts: new, extended from one of fewer languages, or trained."""
    mole = MoLE(experts, config.fusion_conf, config.classifier_conf)
    if config.mole_weights is not None:
        state, fingerprints = read_trained(config.mole_weights)
        check_fingerprints(fingerprints, mole.fingerprints, config.mole_weights)
        load_trained(mole, state, config.mole_weights)
    elif config.init_mole is not None:
        file = config.init_mole / MOLE_WEIGHTS
        extend_trained(mole, read_trained(file)[0], load_yaml(config.init_mole / "config.yaml")["langs"], file)
    return mole


def _build_student(config: SystemConfig, whisper: Whisper, empty_rank: int | None) -> LoRAKD:
    """Build one LoRA for all languages, with its teacher and its start from the experts if it is a student."""
    if config.adapters is not None:
        student = build_experts(whisper, {STUDENT: Adapter.read(config.adapters)})
        return LoRAKD(student, None, KDConfig(kd="none"))
    alone = config.system == "multilingual"
    kd_conf = KDConfig(kd="none") if alone else config.kd_conf
    average = not alone and config.student_init == "average"
    teacher = _prepared_experts(config, share_weights(whisper), empty_rank) if average or kd_conf.kd != "none" else None
    student = LoRAExperts(whisper, [STUDENT], config.expert_conf, config.seed)
    if average and empty_rank is None:
        shares = init_from_average(student, teacher)
        least = min(shares, key=shares.get)
        logging.info(
            f"student starts as the average of the experts: rank {student.config.rank} preserves "
            f"{100 * sum(shares.values()) / len(shares):.1f} % of its energy on average, least in {least}: "
            f"{100 * shares[least]:.1f} %"
        )
    return LoRAKD(student, None if kd_conf.kd == "none" else teacher, kd_conf)


def check_fingerprints(trained: Mapping[str, int], present: Mapping[str, int], where: object) -> None:
    """Check that a system was trained on the frozen parts that are here.

    Raises:
        ValueError: it was trained on another backbone or on other experts.
    """
    for part, value in present.items():
        if trained.get(part) != value:
            raise ValueError(
                f"{where} was trained on another {part}, or on one that was trained again since: give the {part} of "
                f"its training ({part} in the config.yaml in its folder)"
            )


def _checkpoint_activations(system: nn.Module) -> None:
    if isinstance(system, Whisper):
        system.recompute = nullcontext
    for module in system.modules():
        if isinstance(module, LoRAExperts):
            module.checkpoint_activations()

"""A trained system in a folder of its own, which can be moved, uploaded, and packed into one file."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from espnet_lole.atomic_io import whole_folder
from espnet_lole.export.card import card
from espnet_lole.export.facts import Facts, gather, keep
from espnet_lole.export.whisper import save_merged
from espnet_lole.inference.system import MOLE_WEIGHTS, System
from espnet_lole.whisper.checkpoint import load_backbone

_BACKBONE_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "README.md")


def save_folder(source: Path, system: System, folder: Path, licence: str, data: str) -> None:
    """Write a system with all that it needs but a backbone from the hub; the folder appears whole or not at all.

    Args:
        source: the folder that the system is in.
        system: what it holds.
        folder: to write, replaced if it is there.
        licence: for the card.
        data: what it was trained on, in words, for the card.

    Raises:
        ValueError: it is a whole Whisper, which needs no export.
        OSError: a part cannot be read or written.
    """
    if system.kind == "whisper":
        raise ValueError(f"expected experts, MoLE or a student, got a whole Whisper in {source}: it can be used as it is")
    facts = gather(source, system)
    local = Path(system.backbone).is_dir()
    conf = {"system": system.kind, "langs": list(system.languages), "backbone": "backbone" if local else system.backbone}
    with whole_folder(folder) as made:
        for name, adapter in system.adapter_folders().items():
            shutil.copytree(adapter, made / "adapters" / name)
        if local:
            _copy_backbone(Path(system.backbone), made / "backbone")
        if system.checkpoint is not None:
            conf["experts"] = "adapters"
            save_file(_state(system.checkpoint), made / MOLE_WEIGHTS)
        (made / "config.yaml").write_text(yaml.safe_dump(conf | system.conf, sort_keys=False))
        keep(facts, made / "facts.json")
        (made / "README.md").write_text(card(facts, folder.name, licence, data), encoding="utf-8")


def save_whisper(source: Path, system: System, folder: Path, lang: str | None, licence: str, data: str) -> None:
    """Write a student, or the expert of a language, merged into a Whisper of ``transformers``.

    Args:
        source: the folder that the system is in.
        system: what it holds.
        folder: to write, replaced if it is there.
        lang: of experts, the one to merge.
        licence: for the card.
        data: what it was trained on, in words, for the card.

    Raises:
        ValueError: the system has no single adapter to merge, or no expert for the language.
    """
    adapters = system.adapter_folders()
    name = lang if system.kind == "experts" else "student"
    if system.kind not in ("experts", "student") or name not in adapters:
        raise ValueError(
            f"expected a student, or experts and the language of one of them ({' '.join(system.languages)}), got system "
            f"{system.kind} and language {lang}: MoLE has no merged form, for its deep layers differ by language"
        )
    languages = [lang] if system.kind == "experts" else system.languages
    save_merged(load_backbone(system.backbone, system.window).model, adapters[name], folder, languages)
    facts = gather(source, system)
    one = Facts(**vars(facts) | {"languages": tuple(languages), "ranks": {name: facts.ranks[name]}})
    (folder / "README.md").write_text(card(one, folder.name, licence, data), encoding="utf-8")


def save_ctranslate2(merged: Path, folder: Path) -> None:
    """Convert a merged Whisper for CTranslate2 and faster-whisper; the folder appears whole or not at all.

    Raises:
        ValueError: ``ctranslate2`` is not installed.
    """
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise ValueError("expected ctranslate2, which is not installed: pip install ctranslate2") from error
    with whole_folder(folder) as made:
        converter = TransformersConverter(str(merged), copy_files=["tokenizer.json", "preprocessor_config.json"])
        converter.convert(str(made), force=True)


def _state(checkpoint: Path) -> dict[str, torch.Tensor]:
    if checkpoint.suffix == ".safetensors":
        return load_file(checkpoint)
    return {name: value.contiguous() for name, value in torch.load(checkpoint, map_location="cpu", weights_only=True).items()}


def _copy_backbone(source: Path, folder: Path) -> None:
    folder.mkdir()
    for pattern in _BACKBONE_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)

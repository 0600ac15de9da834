"""A system of one adapter, or one expert, merged into a whole Whisper of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from espnet_lole.export.metadata import collect_metadata
from espnet_lole.export.model_card import model_card
from espnet_lole.export.transformers import save_whisper_model
from espnet_lole.inference.load import SystemFolder
from espnet_lole.lole.adapters import load_adapters
from espnet_lole.whisper.checkpoint import load_whisper
from espnet_lole.whisper.model import Whisper


def save_merged(system: SystemFolder, folder: Path, lang: str | None, licence: str, data: str) -> None:
    """Merge a student, a multilingual LoRA or the expert of a language into a Whisper of transformers.

    Args:
        system: the system.
        folder: folder to write; it is replaced if it exists.
        lang: language of the expert; None for a system of one adapter.
        licence: identifier of the licence, for the model card.
        data: description of the training data, for the model card.

    Raises:
        ValueError: the system has no adapter to merge, or none for the language.
    """
    adapters = system.adapter_folders()
    if system.system not in ("experts", "student", "multilingual"):
        raise ValueError(
            f"{system.folder} holds a system of kind {system.system}, which has no adapter to merge: take a student, a "
            "multilingual LoRA or an expert; MoLE cannot be merged, as its deep layers differ by language"
        )
    if system.system == "experts" and lang not in adapters:
        raise ValueError(f"expected --lang with the expert to merge, one of {' '.join(adapters)}, got {lang}")
    name, languages = (lang, (lang,)) if system.system == "experts" else (next(iter(adapters)), system.languages)
    whisper = merge_adapter(load_whisper(system.backbone, system.pad_to), adapters[name])
    metadata = collect_metadata(system)
    metadata = replace(metadata, languages=languages, ranks={name: metadata.ranks[name]})
    save_whisper_model(whisper, folder, languages, model_card(metadata, folder.name, licence, data))


def merge_adapter(whisper: Whisper, adapter: Path) -> Whisper:
    """Merge an adapter into the weights of a Whisper: W = W0 + s B A.

    Args:
        whisper: the backbone in float32; its linears are replaced.
        adapter: the adapter's folder.
    """
    experts = load_adapters(whisper, adapter.parent, [adapter.name])
    for name, layer in experts.layers.items():
        whisper.model.set_submodule(name, layer.merge(adapter.name))
    return whisper

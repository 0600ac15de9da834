"""A system of one adapter, or one expert, merged into a whole Whisper of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.export.bundle import require_backbone
from espnet_lole.export.measure import error_rates
from espnet_lole.export.metadata import ModelMetadata, collect_metadata
from espnet_lole.export.model_card import model_card
from espnet_lole.export.transformers import save_whisper_model
from espnet_lole.inference.load import SystemFolder
from espnet_lole.lole.adapters import Adapter, build_experts
from espnet_lole.lole.kd import STUDENT
from espnet_lole.ownership import check_output
from espnet_lole.whisper.checkpoint import load_config, load_whisper, trained_pad_to
from espnet_lole.whisper.model import Whisper


def save_merged(
    system: SystemFolder, folder: Path, lang: str | None, licence: str, data: str, test_dirs: Sequence[Path] = ()
) -> None:
    """Merge a student, a multilingual LoRA or the expert of a language into a Whisper of transformers.

    Args:
        system: the system.
        folder: folder to write; it is replaced if this package made it.
        lang: language of the expert; None for a system of one adapter.
        licence: identifier of the licence, for the model card.
        data: description of the training data, for the model card.
        test_dirs: formatted test sets, on which the merged Whisper is measured in transformers, for the model card.

    Raises:
        FileNotFoundError: the backbone is neither here nor on the hub.
        ValueError: the system has no adapter to merge, or none for the language; it was not trained on audio padded to
            30 s; or the folder holds other files, or overlaps the system.
    """
    check_output(folder, system.sources())
    if choose_adapter(system, lang) is None:
        raise ValueError(f"{system.backbone} is a whole Whisper of transformers already: use it as it is")
    require_backbone(system)
    if not test_dirs:
        require_30s(system)
    whisper, metadata = merge_system(system, lang)
    with atomic_folder(folder, system.sources()) as made:
        save_whisper_model(whisper, made, metadata.languages)
        rates = error_rates(made, test_dirs, metadata.languages)
        metadata = replace(metadata, history=replace(metadata.history, error_rates=rates))
        card = model_card(metadata, folder.name, licence, data, "transformers")
        (made / "README.md").write_text(card, encoding="utf-8")


def choose_adapter(system: SystemFolder, lang: str | None) -> str | None:
    """Return the name of the adapter that makes the system one Whisper; None if it is a whole Whisper.

    Args:
        system: the system.
        lang: language of the expert; None for a system of one adapter.

    Raises:
        ValueError: the system has several adapters, and none is chosen or one of another language.
    """
    adapters = system.adapter_folders()
    if system.system == "mole":
        raise ValueError(
            f"{system.folder} holds LoRA MoLE, which is no single Whisper, because each utterance has its language's "
            "expert: export the student, or one of the experts that MoLE was built on (--lang)"
        )
    if system.system == "experts" and lang not in adapters:
        raise ValueError(
            f"{system.folder} holds one expert per language, and a Whisper can have one of them: expected --lang with "
            f"one of {' '.join(adapters)}, got {lang}; a student is one Whisper for all languages"
        )
    return lang if system.system == "experts" else next(iter(adapters), None)


def merge_system(system: SystemFolder, lang: str | None) -> tuple[Whisper, ModelMetadata]:
    """Load the backbone and merge the adapter of ``choose_adapter`` into it.

    Returns:
        The Whisper, and its metadata: the system's, of this adapter and its languages.
    """
    name = choose_adapter(system, lang)
    share_30s = None if name is None else system.share_30s
    whisper, metadata = load_whisper(system.backbone, system.pad_to, share_30s=share_30s), collect_metadata(system)
    if name is None:
        return whisper, metadata
    languages = (name,) if system.system == "experts" else system.languages
    metadata = replace(metadata, languages=languages, ranks={name: metadata.ranks[name]})
    return merge_adapter(whisper, system.adapter_folders()[name]), metadata


def require_30s(system: SystemFolder) -> None:
    """Check that a system was trained on audio that is padded to 30 s, as every other runtime pads it.

    Raises:
        ValueError: it was not.
    """
    config = load_config(system.backbone)
    pad_to, share = system.pad_to or trained_pad_to(config), system.share_30s
    if not system.adapter_folders():
        share = share or getattr(config, "share_30s", 0.0)
    if pad_to != "30s" and not share:
        raise ValueError(
            f"{system.folder} was trained with pad_to: {pad_to}, but transformers and faster-whisper pad audio to "
            "30 s, where its error rate may be far higher: train it with share_30s: 0.1 or more, or give --test_dirs "
            "to measure its error rate there and export it all the same"
        )


def merge_adapter(whisper: Whisper, adapter: Path) -> Whisper:
    """Merge an adapter into the weights of a Whisper: W = W0 + s B A.

    Args:
        whisper: the backbone in float32; its linears are replaced.
        adapter: the adapter's folder.
    """
    for name, layer in build_experts(whisper, {STUDENT: Adapter.read(adapter)}).layers.items():
        whisper.model.set_submodule(name, layer.merge(STUDENT))
    return whisper

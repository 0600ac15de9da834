"""An adapter that was trained elsewhere, as the expert of a language."""

from __future__ import annotations

import shutil
from pathlib import Path

from espnet_lole.atomic_io import whole_folder
from espnet_lole.inference.system import ADAPTER, find_system
from espnet_lole.lole.adapters import load_adapters as load_bank
from espnet_lole.whisper.checkpoint import load_backbone
from espnet_lole.whisper.tokenizer import WhisperTokens


def install_expert(adapter: Path, lang: str, experts: Path, backbone: str | None = None, replace: bool = False) -> Path:
    """Copy a ``peft`` adapter beside other experts, after it was put on their backbone.

    Args:
        adapter: its folder; a plain LoRA of any rank and targets.
        lang: the language that it becomes the expert of.
        experts: folder of experts: an experiment, an export, or adapters.
        backbone: folder or hub name of the Whisper; default: that of the experts.
        replace: replace the expert that the language has.

    Returns:
        The expert's folder.

    Raises:
        FileNotFoundError: the adapter, the experts or the backbone are missing.
        ValueError: the adapter does not fit the backbone, Whisper does not know the language, or it has an expert.
    """
    system = find_system(experts, backbone)
    if system.kind != "experts":
        raise ValueError(
            f"expected a folder of experts, got a system of kind {system.kind!r} in {experts}: give the folder of its experts; "
            "MoLE and a student learn a language only by training"
        )
    folder = system.adapters / lang
    if folder.exists() and not replace:
        raise ValueError(f"expected a language without an expert, got {lang!r}, which has {folder}: give --replace")
    whisper = load_backbone(system.backbone)
    WhisperTokens(whisper.model.config.vocab_size).language(lang)
    load_bank(whisper.model, adapter.resolve().parent, [adapter.resolve().name])
    with whole_folder(folder) as made:
        for file in (ADAPTER, "adapter_model.safetensors"):
            shutil.copyfile(adapter / file, made / file)
    return folder

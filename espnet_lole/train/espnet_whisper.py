"""The backbone of ESPnet's own Whisper, whose encoder and decoder load a model by its name in openai-whisper's list."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROMPT = "<|{lang}|> <|transcribe|>"
"""The prompt of a language: its token and the task; ESPnet adds ``<|startoftranscript|>`` and ``<|notimestamps|>``.

The token makes ESPnet's own list of Whisper's languages unnecessary, which lacks some, such as Turkish and Hindi."""


def backbone_file(config: Mapping[str, Any]) -> Path | None:
    """Return the file ``<download_dir>/<whisper_model>.pt`` of a training by ESPnet; None without a Whisper or a file.

    Args:
        config: the options of the training.
    """
    conf = config.get("encoder_conf") or {}
    if config.get("encoder") != "whisper" or not conf.get("download_dir"):
        return None
    file = Path(conf["download_dir"], f"{conf['whisper_model']}.pt")
    return file if file.is_file() else None


def register_backbone(config: Mapping[str, Any]) -> None:
    """Enter a training's backbone into openai-whisper's list of models, which ESPnet looks the name up in.

    An entry is an address that ends in the SHA-256 of the file and its name. The file is in ``download_dir`` already,
    so that nothing is downloaded. Weights that are not in the list, such as fine-tuned ones, cannot be named otherwise.

    Args:
        config: the options of the training.
    """
    if (file := backbone_file(config)) is None:
        return
    from whisper import _ALIGNMENT_HEADS, _MODELS

    _MODELS[file.stem] = f"file:///{hashlib.sha256(file.read_bytes()).hexdigest()}/{file.name}"
    _ALIGNMENT_HEADS[file.stem] = None  # of word times, which ESPnet does not use; OpenAI's are of other sizes

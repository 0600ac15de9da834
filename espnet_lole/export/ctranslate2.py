"""A merged Whisper for CTranslate2, which faster-whisper runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.export.merged import save_merged
from espnet_lole.inference.load import SystemFolder


def save_ctranslate2(system: SystemFolder, folder: Path, lang: str | None, licence: str, data: str) -> None:
    """Convert a system for CTranslate2, after merging its adapter; the folder appears whole or not at all.

    Args:
        system: a whole Whisper, or what ``save_merged`` takes.
        folder: folder to write; it is replaced if it exists.
        lang: as for ``save_merged``.
        licence: as for ``save_merged``.
        data: as for ``save_merged``.

    Raises:
        ValueError: ``ctranslate2`` is not installed, or the system cannot be merged.
    """
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise ValueError("this format needs ctranslate2: pip install ctranslate2") from error
    with tempfile.TemporaryDirectory() as scratch, atomic_folder(folder) as made:
        merged = Path(system.backbone)
        if system.adapter_folders():
            merged = Path(scratch) / folder.name
            save_merged(system, merged, lang, licence, data)
        converter = TransformersConverter(str(merged), copy_files=["tokenizer.json", "preprocessor_config.json"])
        converter.convert(str(made), force=True)

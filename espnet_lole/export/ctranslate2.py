"""A merged Whisper for CTranslate2, which faster-whisper runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.export.merged import require_30s, save_merged
from espnet_lole.inference.load import SystemFolder

FILES = ("tokenizer.json", "preprocessor_config.json", "README.md")
"""Files of the merged Whisper that are copied: what faster-whisper reads, and the model card."""


def save_ctranslate2(
    system: SystemFolder, folder: Path, lang: str | None, licence: str, data: str, test_dirs: Sequence[Path] = ()
) -> None:
    """Convert a system for CTranslate2, after merging its adapter; the folder appears whole or not at all.

    Args:
        system: a whole Whisper, or what ``save_merged`` takes.
        folder: folder to write; it is replaced if this package made it.
        lang: as for ``save_merged``.
        licence: as for ``save_merged``.
        data: as for ``save_merged``.
        test_dirs: as for ``save_merged``.

    Raises:
        FileNotFoundError: the backbone is neither here nor on the hub.
        ValueError: ``ctranslate2`` is not installed, the system cannot be merged, or it was not trained on audio padded
            to 30 s; or the folder holds other files, or overlaps the system.
    """
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise ValueError("this format needs ctranslate2: pip install ctranslate2") from error
    with tempfile.TemporaryDirectory() as scratch, atomic_folder(folder, system.sources()) as made:
        merged = Path(system.backbone)
        if system.adapter_folders():
            merged = Path(scratch) / folder.name
            save_merged(system, merged, lang, licence, data, test_dirs)
        else:
            require_30s(system)
        files = [name for name in FILES if (merged / name).is_file()]
        converted = made / "converted"  # the converter removes a folder that exists, and with it the marker
        TransformersConverter(str(merged), copy_files=files).convert(str(converted))
        for file in converted.iterdir():
            file.rename(made / file.name)
        converted.rmdir()

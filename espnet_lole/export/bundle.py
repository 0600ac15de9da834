"""A trained system in one folder, or one archive, that can be moved, uploaded and loaded anywhere."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import yaml

from espnet_lole.atomic_io import atomic_folder, atomic_write
from espnet_lole.export.metadata import collect_metadata
from espnet_lole.export.model_card import model_card
from espnet_lole.inference.load import MOLE_WEIGHTS, WHISPER_FOLDERS, SystemFolder
from espnet_lole.lole.kd import STUDENT
from espnet_lole.ownership import check_output_file
from espnet_lole.systems import SCORED_DECODING
from espnet_lole.whisper.checkpoint import load_config
from espnet_lole.whisper.sizes import SIZES

ESPNET_META = "meta.yaml"
"""File of an archive by which ESPnet's ``unpack`` knows its parts."""
BACKBONE_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model*.json", "README.md")


def save_bundle(system: SystemFolder, folder: Path, licence: str, data: str) -> None:
    """Copy a system with all its parts but a backbone from the hub; the folder appears whole or not at all.

    Args:
        system: the system.
        folder: folder to write; it is replaced if this package made it.
        licence: identifier of the licence, for the model card.
        data: description of the training data, for the model card.

    Raises:
        FileNotFoundError: the backbone is neither here nor on the hub.
        ValueError: the system is a Whisper that was not trained here, which is such a folder already; or the folder
            holds other files, or overlaps the system.
        OSError: a part cannot be read or written.
    """
    if system.system == "zero_shot":
        raise ValueError(f"{system.backbone} is a whole Whisper, which needs no export: use it as it is")
    require_backbone(system)
    metadata = collect_metadata(system)
    with atomic_folder(folder, system.sources()) as made:
        backbone = _copy_backbone(system.backbone, made, WHISPER_FOLDERS[0] if system.system == "full" else "backbone")
        conf = {"system": system.system, "langs": list(system.languages), "backbone": backbone}
        for name, adapter in system.adapter_folders().items():
            name = name if system.system in ("experts", "mole") else STUDENT
            shutil.copytree(adapter, made / "adapters" / name)
        if system.system == "mole":
            conf["experts"] = "adapters"
            shutil.copyfile(system.mole_weights, made / MOLE_WEIGHTS)
        (made / "config.yaml").write_text(yaml.safe_dump(conf | system.conf, sort_keys=False))
        if system.scored_decoding:
            shutil.copyfile(system.scored_decoding, made / SCORED_DECODING)
        weights = {"asr_model_file": MOLE_WEIGHTS} if system.system == "mole" else {}
        meta = {"files": weights, "yaml_files": {"asr_train_config": "config.yaml"}}
        (made / ESPNET_META).write_text(yaml.safe_dump(meta))
        metadata.history.write(made)
        (made / "README.md").write_text(model_card(metadata, folder.name, licence, data), encoding="utf-8")


def save_archive(archive: Path, save: Callable[[Path], None]) -> None:
    """Pack an export into an archive that ESPnet's ``unpack`` restores as the folder.

    Args:
        archive: file to write, with the ending ``.zip``; it is replaced if this function wrote it.
        save: writes the export into a folder.

    Raises:
        ValueError: another file has the archive's name, or as ``save``.
        OSError: a part cannot be read or written.
    """
    check_output_file(archive)
    with tempfile.TemporaryDirectory() as scratch, atomic_write(archive) as made:
        folder = Path(scratch) / archive.stem
        save(folder)
        with zipfile.ZipFile(made, "w") as packed:
            for file in filter(Path.is_file, sorted(folder.rglob("*"))):
                packed.write(file, file.relative_to(folder))


def require_backbone(system: SystemFolder) -> None:
    """Check that a system's backbone is here or on the hub.

    Raises:
        FileNotFoundError: it is not, e.g. because the system was moved and its path is relative.
    """
    if system.backbone in SIZES:
        return
    try:
        load_config(system.backbone)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{system.folder} was trained on the backbone {system.backbone}, which is neither here nor on the hub: "
            "give its folder with --backbone"
        ) from error


def _copy_backbone(backbone: str, folder: Path, name: str) -> str:
    """Copy a backbone that is a folder (to ``name``) or a file, and return its place; a name on the hub stays."""
    source = Path(backbone)
    if source.is_file():
        shutil.copyfile(source, folder / source.name)
        return source.name
    if not source.is_dir():
        return backbone
    (folder / name).mkdir()
    for file in (file for pattern in BACKBONE_FILES for file in source.glob(pattern)):
        shutil.copyfile(file, folder / name / file.name)
    return name

"""What is known of a trained system without loading it: its size, its training, its data and its error rates."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from espnet_lole.config import load_yaml
from espnet_lole.data.kaldi import read_table
from espnet_lole.inference.system import System
from espnet_lole.whisper.features import SAMPLE_RATE


@dataclass(frozen=True)
class Facts:
    """Facts on a system.

    Attributes:
        kind: experts, mole, student or whisper.
        backbone: its name or folder.
        languages: that it transcribes.
        ranks: of each adapter.
        parameters: of each adapter, and of ``mole`` where there is one.
        shared_layers: MoLE's L1, or None.
        epochs: of the training, or None.
        training: the validation figures of the last epoch.
        hours: of training audio by language, where the data are still there.
        errors: (scenario, language) -> error rate in percent, where the recipe scored it.
    """

    kind: str
    backbone: str
    languages: tuple[str, ...]
    ranks: dict[str, int]
    parameters: dict[str, int]
    shared_layers: int | None
    epochs: int | None
    training: dict[str, float]
    hours: dict[str, float]
    errors: dict[tuple[str, str], float]


def gather(folder: Path, system: System) -> Facts:
    """The facts on the system in a folder; what is not there is left empty."""
    adapters = {name: _tensors(path / "adapter_model.safetensors") for name, path in system.adapter_folders().items()}
    ranks = {name: max(shape[0] for key, shape in found.items() if ".lora_A." in key) for name, found in adapters.items()}
    parameters = {name: sum(rows * columns for rows, columns in found.values()) for name, found in adapters.items()}
    config = folder / "config.yaml"
    conf = load_yaml(config) if config.is_file() else {}
    epochs, training = _training(folder / "train.log")
    kept = folder / "facts.json"  # of an export, whose training is elsewhere
    if kept.is_file():
        known = json.loads(kept.read_text())
        errors = {tuple(key.split()): value for key, value in known["errors"].items()}
        epochs, training, hours = known["epochs"], known["training"], known["hours"]
    else:
        hours, errors = _hours(conf, folder), _errors(folder)
    shared = system.conf.get("fusion_conf", {}).get("shared_layers")
    return Facts(system.kind, system.backbone, system.languages, ranks, parameters, shared, epochs, training, hours, errors)


def keep(facts: Facts, file: Path) -> None:
    """Write what an export cannot tell by itself."""
    errors = {" ".join(key): value for key, value in facts.errors.items()}
    kept = {"epochs": facts.epochs, "training": facts.training, "hours": facts.hours, "errors": errors}
    file.write_text(json.dumps(kept, indent=1) + "\n")


def _tensors(file: Path) -> dict[str, list[int]]:
    """Shape of each tensor."""
    with safe_open(file, "pt") as tensors:
        return {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118  # no dictionary


def _training(log: Path) -> tuple[int | None, dict[str, float]]:
    """Number of the last epoch, and its figures on the validation set, from ESPnet's log."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    found = [match for line in lines if (match := re.search(r"(\d+)epoch results: .*\[valid\] (.*)", line))]
    if not found:
        return None, {}
    wanted = ("loss", "acc", "lid_acc")
    figures = dict(re.findall(r"(\w+)=([\d.]+)", found[-1][2]))
    return int(found[-1][1]), {name: float(figures[name]) for name in wanted if name in figures}


def _hours(conf: dict, folder: Path) -> dict[str, float]:
    """Training audio by language, from the sets that the configuration names, relative to the recipe."""
    named = [path for path, name, _ in conf.get("train_data_path_and_name_and_type", []) if name == "lang"]
    file = next((base / named[0] for base in folder.resolve().parents if (base / named[0]).is_file()), None) if named else None
    if file is None or not (file.parent / "utt2num_samples").is_file():
        return {}
    samples, hours = read_table(file.parent / "utt2num_samples"), {}
    for utt, lang in read_table(file).items():
        hours[lang] = hours.get(lang, 0.0) + int(samples[utt]) / SAMPLE_RATE / 3600
    return dict(sorted(hours.items()))


def _errors(folder: Path) -> dict[tuple[str, str], float]:
    """Error rates from the scored decodings in the folder; of two of a scenario, the later."""
    errors = {}
    for results in sorted(folder.glob("*/results.csv"), key=lambda path: path.stat().st_mtime):
        with results.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row["set"], row["metric"]) == ("all", "error")]
        errors |= {(row["scenario"], row["language"]): float(row["value"]) for row in rows}
    return errors

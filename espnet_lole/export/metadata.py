"""Metadata of a trained system, read without loading it: sizes, training, data and error rates."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from espnet_lole.config import load_yaml
from espnet_lole.data.kaldi import read_table
from espnet_lole.inference.load import SystemFolder
from espnet_lole.lole.peft_files import read_shapes
from espnet_lole.whisper.features import SAMPLE_RATE

HISTORY = "history.json"
"""File in an exported system: the history that its training folder had."""


@dataclass(frozen=True)
class History:
    """Training, data and scores of a system; what is unknown is empty.

    Attributes:
        epochs: number of epochs trained, or None.
        validation: figures of the last epoch on the validation set.
        hours: hours of training audio by language, if the data are still there.
        error_rates: scenario -> language -> WER or CER in percent, if the recipe scored the system.
    """

    epochs: int | None = None
    validation: dict[str, float] = field(default_factory=dict)
    hours: dict[str, float] = field(default_factory=dict)
    error_rates: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> History:
        """Read the history that an export keeps, or collect it from a training folder."""
        if (folder / HISTORY).is_file():
            return cls(**json.loads((folder / HISTORY).read_text()))
        return cls(*_read_training_log(folder), _count_hours(folder), _read_error_rates(folder))

    def write(self, folder: Path) -> None:
        """Write the history into an export."""
        (folder / HISTORY).write_text(json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a trained system.

    Attributes:
        system: its kind, one of ``SYSTEMS``.
        backbone: name or folder of the Whisper.
        languages: languages that it transcribes.
        ranks: rank of each adapter.
        parameters: number of parameters of each adapter.
        shared_layers: MoLE's L1, or None.
        history: training, data and scores.
    """

    system: str
    backbone: str
    languages: tuple[str, ...]
    ranks: dict[str, int]
    parameters: dict[str, int]
    shared_layers: int | None
    history: History

    def describe(self) -> dict[str, str]:
        """Describe what is known of the system, topic by topic, without its data and scores."""
        topics = {"system": self.system, "backbone": self.backbone, "languages": " ".join(self.languages)}
        for name, rank in self.ranks.items():
            topics[f"adapter {name}"] = f"rank {rank}, {self.parameters[name]:,} parameters"
        if self.shared_layers is not None:
            topics["shared layers"] = f"encoder layers 1 to {self.shared_layers}"
        if self.history.epochs is not None:
            figures = ", ".join(f"{name} {value:g}" for name, value in self.history.validation.items())
            topics["training"] = f"{self.history.epochs} epochs; on the validation set {figures}"
        return topics


def collect_metadata(system: SystemFolder) -> ModelMetadata:
    """Collect the metadata of the system in a folder."""
    adapters = system.adapter_folders()
    factors = {name: list(read_shapes(folder).values()) for name, folder in adapters.items()}
    return ModelMetadata(
        system=system.system,
        backbone=system.backbone,
        languages=system.languages,
        ranks={name: max(pair["A"][0] for pair in pairs) for name, pairs in factors.items()},
        parameters={
            name: sum(math.prod(shape) for pair in pairs for shape in pair.values()) for name, pairs in factors.items()
        },
        shared_layers=system.conf.get("fusion_conf", {}).get("shared_layers"),
        history=History.read(system.folder),
    )


def _read_training_log(folder: Path) -> tuple[int | None, dict[str, float]]:
    """Read the last epoch's number and its figures on the validation set from ESPnet's logs.

    Its launcher renames the log of an earlier call to ``train.1.log``, ``train.2.log`` and so on.
    """
    logs = sorted(folder.glob("train*.log"), key=lambda log: log.stat().st_mtime)
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
    epochs = [match for line in lines if (match := re.search(r"(\d+)epoch results: .*\[valid\] (.*)", line))]
    if not epochs:
        return None, {}
    figures = dict(re.findall(r"(\w+)=([\d.]+)", epochs[-1][2]))
    return int(epochs[-1][1]), {name: float(figures[name]) for name in ("loss", "acc", "lid_acc") if name in figures}


def _count_hours(folder: Path) -> dict[str, float]:
    """Count the hours of training audio by language in the data that a training's configuration names."""
    conf = load_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    names = [path for path, name, _ in conf.get("train_data_path_and_name_and_type", []) if name == "lang"]
    files = [parent / name for name in names for parent in folder.resolve().parents]  # relative to the recipe's folder
    utt2lang = next((file for file in files if file.is_file()), None)
    if utt2lang is None or not (utt2lang.parent / "utt2num_samples").is_file():
        return {}
    samples, hours = read_table(utt2lang.parent / "utt2num_samples"), defaultdict(float)
    for utt, lang in sorted(read_table(utt2lang).items(), key=lambda item: item[1]):
        hours[lang] += int(samples[utt]) / SAMPLE_RATE / 3600
    return dict(hours)


def _read_error_rates(folder: Path) -> dict[str, dict[str, float]]:
    """Read the error rates of the decodings in a training folder; the latest decoding of a scenario counts."""
    rates = defaultdict(dict)
    for results in sorted(folder.glob("*/results.csv"), key=lambda path: path.stat().st_mtime):
        with results.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["set"] == "all" and row["metric"] in ("wer_or_cer", "error"):  # its name in older files
                    rates[row["scenario"]][row["language"]] = float(row["value"])
    return dict(rates)

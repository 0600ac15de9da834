"""Trained systems on disk: what a folder holds, and the transcriber made of it; ESPnet is not needed for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from espnet_lole.config import load_yaml, read_conf
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import ExpertTranscriber, MoLETranscriber, PromptTranscriber, Transcriber
from espnet_lole.lole.adapters import load_bank, trained_window
from espnet_lole.lole.cache import ExpertCache
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.lole.mole import MoLE
from espnet_lole.lole.routing import RoutingConfig
from espnet_lole.whisper.checkpoint import check_fingerprints, fingerprint, load_backbone, load_config
from espnet_lole.whisper.tokenizer import WhisperTokens

ADAPTER = "adapter_config.json"
MOLE_WEIGHTS = "mole.safetensors"
"""MoLE's fusion weights and classifier in an exported folder."""


@dataclass(frozen=True)
class System:
    """A trained system as it lies on disk.

    Attributes:
        kind: ``experts``, ``mole``, ``student`` (one adapter for all languages) or ``whisper`` (no adapter).
        backbone: folder or hub name of the Whisper.
        languages: that it transcribes, in the order of their index.
        adapters: of experts and MoLE, the folder with a ``peft`` folder for each language; of a student, its ``peft`` folder.
        checkpoint: MoLE's fusion weights and classifier.
        conf: of the training, where it is known: ``window``, ``precision``, and MoLE's ``fusion_conf`` and ``classifier_conf``.
    """

    kind: str
    backbone: str
    languages: tuple[str, ...]
    adapters: Path | None
    checkpoint: Path | None
    conf: dict[str, Any]

    def adapter_folders(self) -> dict[str, Path]:
        """The ``peft`` folder of each expert, or of the student."""
        if self.adapters is None:
            return {}
        return {self.kind: self.adapters} if self.kind == "student" else {lang: self.adapters / lang for lang in self.languages}

    @property
    def window(self) -> str | None:
        """That of the training, or else the first that an adapter notes; None: the backbone's own.

        Raises:
            FileNotFoundError: an adapter has no weights.
            ValueError: they are damaged.
        """
        noted = map(trained_window, self.adapter_folders().values())  # one added from elsewhere notes none
        return self.conf.get("window") or next(filter(None, noted), None)


def find_system(folder: Path, backbone: str | None = None, languages: Sequence[str] | None = None) -> System:
    """What a folder holds; its weights are not read.

    Args:
        folder: of an experiment of the recipe, an exported system, ``peft`` adapters (or one of them), or a Whisper of
            ``transformers``.
        backbone: folder or hub name; default: that of the training.
        languages: default: those of the training.

    Raises:
        FileNotFoundError: the folder or a part of the system is not there.
        ValueError: the folder holds nothing of the kind.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"expected the folder of a trained system, but {folder} is not there")
    if (folder / "config.yaml").is_file():
        return _experiment(folder, backbone, languages)
    if (folder / "config.json").is_file():
        return System("whisper", str(folder), tuple(languages or _known_languages(folder)), None, None, {})
    if (folder / ADAPTER).is_file():
        backbone = backbone or _backbone_of(folder)
        known = languages or WhisperTokens(load_config(backbone).vocab_size).languages
        return System("student", backbone, tuple(known), folder, None, {})
    if found := adapters_in(folder):
        known = tuple(languages or found)
        return System("experts", backbone or _backbone_of(folder / known[0]), known, folder, None, {})
    raise ValueError(
        f"expected in {folder} a config.yaml (a training of the recipe, or an export), {ADAPTER} (peft adapters, here or in "
        "subfolders) or config.json (a Whisper of transformers), got none of them: train the system first, or name another folder"
    )


def load_system(
    system: System, device: str, search: SearchConfig, routing: RoutingConfig, resident: int | None = None
) -> Transcriber:
    """The transcriber of a system, on a device, in evaluation mode.

    Args:
        system: what to load.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        search: how to search.
        routing: how MoLE routes utterances of unknown language.
        resident: at most this many experts are in memory, the others on disk; None: all are.

    Raises:
        FileNotFoundError: the backbone or a language's adapter is missing.
        ValueError: the parts do not fit together.
    """
    conf = system.conf
    backbone = load_backbone(system.backbone, system.window, conf.get("precision", "float32"))
    tokens = WhisperTokens(backbone.model.config.vocab_size)
    model = backbone.model
    if system.kind == "mole":
        bank = load_bank(model, system.adapters, system.languages)
        parts = (backbone, bank, FusionConfig(**conf["fusion_conf"]), ClassifierConfig(**conf["classifier_conf"]))
        mole = _load_mole(system, MoLE(*parts))
        for part in (backbone, mole.fusion, mole.classifier):
            part.to(device).eval()
        transcriber = MoLETranscriber(mole, tokens, search, routing)
    elif system.kind == "experts":
        bank = ExpertCache(model, system.adapters, resident) if resident else load_bank(model, system.adapters, system.languages)
        transcriber = ExpertTranscriber(backbone.to(device).eval(), tokens, bank, search)
    else:
        bank = load_bank(model, system.adapters.parent, [system.adapters.name]) if system.adapters else None
        transcriber = PromptTranscriber(backbone.to(device).eval(), tokens, bank, system.languages, search)
    if bank is not None:
        bank.store_in(backbone.precision)
    return transcriber


def adapters_in(folder: Path) -> list[str]:
    """Names of the ``peft`` adapters in a folder, sorted."""
    return sorted(file.parent.name for file in folder.glob(f"*/{ADAPTER}"))


def read_decoding(file: Path | None) -> tuple[float, SearchConfig, RoutingConfig]:
    """Seconds of audio of a batch, how to search and how to route, from a decoding YAML.

    Raises:
        ValueError: it is no YAML of these keys and their types.
    """
    conf = load_yaml(file) if file else {}
    seconds, routing = conf.pop("batch_seconds", 160.0), conf.pop("routing", {})
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"expected batch_seconds of {file} to be a number above 0, got {seconds!r}")
    return seconds, read_conf(SearchConfig, conf, str(file)), read_conf(RoutingConfig, routing, f"routing of {file}")


def _experiment(folder: Path, backbone: str | None, languages: Sequence[str] | None) -> System:
    """The system in a folder with a ``config.yaml``."""
    conf = load_yaml(folder / "config.yaml")
    kind, checkpoint = conf.get("system"), None
    if kind not in ("experts", "mole", "student", "full"):
        raise ValueError(f"expected system: experts, mole, student or full in {folder / 'config.yaml'}, got {kind!r}")
    adapters, known = folder / "adapters", languages or conf["langs"]
    if kind == "full":
        return System("whisper", str(folder / "merged"), tuple(known), None, None, {})
    if kind == "mole":
        adapters = Path(_resolve(conf["experts"], folder))
        checkpoint = _mole_checkpoint(folder, conf)
        known = conf["langs"]  # the classifier's
    elif kind == "student":
        adapters = adapters / "student"
    else:
        known = languages or adapters_in(adapters)  # an added language is not in the configuration
    for part in (adapters, checkpoint):
        if part is not None and not part.exists():
            raise FileNotFoundError(f"expected a trained system in {folder}, but {part} is not there: train and export it first")
    kept = {key: conf[key] for key in ("window", "precision", "fusion_conf", "classifier_conf") if key in conf}
    return System(kind, backbone or _resolve(conf["backbone"], folder), tuple(known), adapters, checkpoint, kept)


def _mole_checkpoint(folder: Path, conf: dict[str, Any]) -> Path:
    """An export's, or the best of a training."""
    if (folder / MOLE_WEIGHTS).is_file():
        return folder / MOLE_WEIGHTS
    best, figure, _ = conf["best_model_criterion"][0]
    return folder / f"{best}.{figure}.ave.pth"


def _load_mole(system: System, mole: MoLE) -> MoLE:
    """The same MoLE with its trained weights."""
    file = system.checkpoint
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    check_fingerprints(state, {"backbone": fingerprint(mole.backbone), "experts": mole.bank.fingerprint()})
    for name, module in (("fusion", mole.fusion), ("classifier", mole.classifier)):
        part = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        try:
            module.load_state_dict(part)
        except RuntimeError as error:
            raise ValueError(f"expected in {file} a MoLE of the languages {' '.join(system.languages)}: {error}") from error
    return mole


def _resolve(name: str, folder: Path) -> str:
    """A path of a configuration, relative to the folder, the recipe or another folder above it; else a hub name."""
    above = [folder.resolve(), *folder.resolve().parents]
    return next((str((base / name).resolve()) for base in above if (base / name).exists()), name)


def _backbone_of(adapter: Path) -> str:
    name = json.loads((adapter / ADAPTER).read_text()).get("base_model_name_or_path")
    if not name:
        raise ValueError(f"expected a backbone, got none for {adapter}: its {ADAPTER} names none either, so give one")
    return _resolve(name, adapter)


def _known_languages(folder: Path) -> list[str]:
    """Those in ``generation_config.json``, where ``transformers`` looks for them; else all of Whisper's."""
    file = folder / "generation_config.json"
    named = json.loads(file.read_text()).get("lang_to_id") if file.is_file() else None
    return (
        [token.strip("<|>") for token in named] if named else list(WhisperTokens(load_config(str(folder)).vocab_size).languages)
    )

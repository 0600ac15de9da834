"""Trained systems on disk: what a folder holds, and the transcriber that is loaded from it; ESPnet is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_lole.config import load_yaml, read_conf
from espnet_lole.inference.expert_cache import ExpertCache
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import ExpertTranscriber, MoLETranscriber, PromptTranscriber, Transcriber
from espnet_lole.lole.adapters import ADAPTER_CONFIG, load_adapters, trained_pad_to
from espnet_lole.lole.compat import read_config
from espnet_lole.lole.mole import RoutingConfig
from espnet_lole.lole.system import TRAINED_HERE, SystemConfig, build_system
from espnet_lole.whisper.checkpoint import load_config, load_whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

MOLE_WEIGHTS = "mole.safetensors"
"""File of MoLE's fusion weights and language classifier."""
WHISPER_FOLDERS = ("whisper", "merged")
"""Subfolder of a fully fine-tuned Whisper: today's name, and that of older exports."""
DECODING_KEYS = ("pad_to", "precision", "fusion_conf", "classifier_conf")
"""Keys of a training's configuration that decoding needs."""


@dataclass(frozen=True)
class SystemFolder:
    """A trained system on disk.

    Attributes:
        system: a name of ``SYSTEMS``; ``zero_shot`` is any Whisper without adapters.
        folder: where it was found.
        backbone: folder or hub name of the Whisper.
        languages: codes of the languages that it transcribes, in the order of their index.
        adapters: folder with a ``peft`` folder for each expert; for a student, its ``peft`` folder.
        mole_weights: file of MoLE's fusion weights and language classifier.
        conf: the training's ``DECODING_KEYS``, where they are known.
    """

    system: str
    folder: Path
    backbone: str
    languages: tuple[str, ...]
    adapters: Path | None = None
    mole_weights: Path | None = None
    conf: dict[str, Any] = field(default_factory=dict)

    def adapter_folders(self) -> dict[str, Path]:
        """Return the ``peft`` folder of each language's expert, or of the student."""
        if self.adapters is None:
            return {}
        if self.system in ("experts", "mole"):
            return {lang: self.adapters / lang for lang in self.languages}
        return {self.system: self.adapters}

    @property
    def pad_to(self) -> str | None:
        """The padding of the training, from its configuration or else from an adapter; None: the backbone's own.

        Raises:
            FileNotFoundError: an adapter has no weights.
            ValueError: the weights are damaged.
        """
        noted = map(trained_pad_to, self.adapter_folders().values())  # adapters trained elsewhere note none
        return self.conf.get("pad_to") or next(filter(None, noted), None)


def find_system(folder: Path, backbone: str | None = None, languages: Sequence[str] | None = None) -> SystemFolder:
    """Tell what a folder holds, without reading weights.

    Args:
        folder: a training, an exported system, ``peft`` adapters (or one of them), or a Whisper of ``transformers``.
        backbone: folder or hub name; default: that of the training.
        languages: codes of the languages to choose from; default: those of the training, which MoLE always has.

    Raises:
        FileNotFoundError: the folder or a part of the system is missing.
        ValueError: it holds no system, or its backbone is unknown.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"expected the folder of a trained system, but {folder} is not there")
    if (folder / "config.yaml").is_file():
        return _training(folder, backbone, languages)
    if (folder / "config.json").is_file():
        return SystemFolder("zero_shot", folder, str(folder), tuple(languages or _whisper_languages(folder)))
    if (folder / ADAPTER_CONFIG).is_file():
        backbone = backbone or _backbone_of(folder)
        languages = languages or WhisperTokenizer(load_config(backbone).vocab_size).languages
        return SystemFolder("student", folder, backbone, tuple(languages), folder)
    if found := adapters_in(folder):
        languages = tuple(languages or found)
        return SystemFolder("experts", folder, backbone or _backbone_of(folder / languages[0]), languages, folder)
    raise ValueError(
        f"{folder} holds no system: it has no config.yaml (a training or an export), no {ADAPTER_CONFIG} (peft "
        "adapters, here or in subfolders) and no config.json (a Whisper of transformers). Train the system first, or "
        "name another folder"
    )


def load_transcriber(
    system: SystemFolder,
    device: str,
    search: SearchConfig,
    routing: RoutingConfig,
    max_loaded_experts: int | None = None,
) -> Transcriber:
    """Load a system for decoding.

    Args:
        system: what to load.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        search: options of the search.
        routing: how MoLE routes utterances of unknown language.
        max_loaded_experts: number of experts in memory, the others stay on disk; None: all of them.

    Raises:
        FileNotFoundError: the backbone or a language's adapter is missing.
        ValueError: the parts do not fit together.
    """
    precision = system.conf.get("precision", "float32")
    if system.system == "mole":
        conf = {key: value for key, value in system.conf.items() if key != "pad_to"}
        mole = build_system(
            SystemConfig("mole", system.backbone, system.languages, system.pad_to, experts=system.adapters, **conf)
        )
        mole.load_trained(system.mole_weights)
        mole.experts.cast_(mole.experts.whisper.precision)
        tokenizer = WhisperTokenizer(mole.experts.whisper.model.config.vocab_size)
        return MoLETranscriber(mole.to(device).eval(), tokenizer, search, routing)
    whisper = load_whisper(system.backbone, system.pad_to, precision)
    tokenizer = WhisperTokenizer(whisper.model.config.vocab_size)
    if system.system == "experts":
        if max_loaded_experts:
            experts = ExpertCache(whisper, system.adapters, max_loaded_experts)
        else:
            experts = load_adapters(whisper, system.adapters, system.languages)
        experts.cast_(whisper.precision)
        whisper.to(device)
        return ExpertTranscriber(experts, tokenizer, search)
    adapter = None
    if system.adapters is not None:
        adapter = load_adapters(whisper, system.adapters.parent, [system.adapters.name]).cast_(whisper.precision)
    return PromptTranscriber(whisper.to(device), tokenizer, adapter, system.languages, search)


def adapters_in(folder: Path) -> list[str]:
    """Return the names of the ``peft`` adapters in a folder, sorted."""
    return sorted(file.parent.name for file in folder.glob(f"*/{ADAPTER_CONFIG}"))


def read_decoding_config(
    file: Path | None, options: Mapping[str, Any] | None = None
) -> tuple[float, SearchConfig, RoutingConfig]:
    """Read the configuration of a decoding, such as ``conf/decode.yaml``.

    Args:
        file: YAML with ``batch_seconds``, keys of ``SearchConfig``, and ``routing`` for MoLE; None: the defaults.
        options: values that override those of the file.

    Returns:
        Seconds of audio of a batch, options of the search, and how MoLE routes.

    Raises:
        ValueError: the file is no YAML of these keys and their types.
    """
    conf = (load_yaml(file) if file else {}) | dict(options or {})
    batch_seconds, routing = conf.pop("batch_seconds", 160.0), conf.pop("routing", {})
    if isinstance(batch_seconds, bool) or not isinstance(batch_seconds, int | float) or not batch_seconds > 0:
        raise ValueError(f"expected batch_seconds of {file} to be a number above 0, got {batch_seconds!r}")
    search = read_conf(SearchConfig, conf, str(file))
    return batch_seconds, search, read_conf(RoutingConfig, routing, f"routing of {file}")


def _training(folder: Path, backbone: str | None, languages: Sequence[str] | None) -> SystemFolder:
    """Find the parts of a training or an export, a folder with a ``config.yaml``."""
    config = read_config(folder)
    system, adapters, weights = config.get("system"), folder / "adapters", None
    if system not in TRAINED_HERE:
        raise ValueError(f"expected system: {', '.join(TRAINED_HERE)} in {folder / 'config.yaml'}, got {system!r}")
    backbone, known = backbone or _resolve(config["backbone"], folder), languages or config["langs"]
    if system == "experts":
        known = languages or adapters_in(adapters)  # an added language is not in the configuration
    elif system == "mole":
        adapters, weights, known = Path(_resolve(config["experts"], folder)), folder / MOLE_WEIGHTS, config["langs"]
    elif system == "full":
        whisper = next(
            (folder / name for name in WHISPER_FOLDERS if (folder / name).is_dir()), folder / WHISPER_FOLDERS[0]
        )
        adapters, backbone = None, str(whisper)
    else:
        adapters = adapters / "student"
    for part in (adapters, weights) if adapters else (Path(backbone),):
        if part is not None and not part.exists():
            raise FileNotFoundError(f"the system in {folder} is not trained to its end: {part} is not there")
    decoding = {key: config[key] for key in DECODING_KEYS if key in config}
    return SystemFolder(system, folder, backbone, tuple(known), adapters, weights, decoding)


def _resolve(name: str, folder: Path) -> str:
    """Resolve a path of a configuration relative to its folder or a folder above it; another name is one of the hub."""
    bases = [folder.resolve(), *folder.resolve().parents]
    return next((str((base / name).resolve()) for base in bases if (base / name).exists()), name)


def _backbone_of(adapter: Path) -> str:
    """Read the backbone of a ``peft`` adapter."""
    name = json.loads((adapter / ADAPTER_CONFIG).read_text()).get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{adapter / ADAPTER_CONFIG} names no base_model_name_or_path: give the backbone")
    return _resolve(name, adapter)


def _whisper_languages(folder: Path) -> Sequence[str]:
    """Read the languages of a Whisper from the file that ``transformers`` reads; all of Whisper's without it."""
    file = folder / "generation_config.json"
    tokens = json.loads(file.read_text()).get("lang_to_id") if file.is_file() else None
    if tokens:
        return [token.strip("<|>") for token in tokens]
    return list(WhisperTokenizer(load_config(str(folder)).vocab_size).languages)

"""Trained systems on disk: what a folder holds, and the transcriber that is loaded from it; ESPnet is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from espnet_lole import compat
from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.config import load_yaml, merge, read_conf
from espnet_lole.inference.expert_cache import ExpertCache
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.speech_detector import VadConfig
from espnet_lole.inference.transcriber import ExpertTranscriber, MoLETranscriber, PromptTranscriber, Transcriber
from espnet_lole.languages import check_language
from espnet_lole.lole.adapters import FOREIGN_PAD_TO, adapters_in, trained_pad_to, trained_share_30s
from espnet_lole.lole.kd import STUDENT, LoRAKD
from espnet_lole.lole.mole import MoLE, RoutingConfig
from espnet_lole.lole.mole_weights import MOLE_WEIGHTS
from espnet_lole.lole.peft_files import CONFIG as ADAPTER_CONFIG
from espnet_lole.lole.system import SystemConfig, build_system
from espnet_lole.systems import SCORED_DECODING, TRAINED_HERE
from espnet_lole.whisper.checkpoint import load_config, load_whisper
from espnet_lole.whisper.checkpoint import trained_pad_to as backbone_pad_to
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

WHISPER_FOLDERS = ("whisper", "merged")
"""Subfolder of a fully fine-tuned Whisper: today's name, and that of older exports."""
DECODING_KEYS = ("pad_to", "share_30s", "precision", "fusion_conf", "classifier_conf")
"""Keys of a training's configuration that decoding needs."""


class Decoding(NamedTuple):
    """Options of a decoding.

    Attributes:
        batch_seconds: seconds of audio of a batch, padding included.
        search: options of the search.
        routing: how MoLE routes utterances of unknown language.
        vad: options of the speech detector; test sets are decoded without it.
    """

    batch_seconds: float
    search: SearchConfig
    routing: RoutingConfig
    vad: VadConfig


@dataclass(frozen=True)
class SystemFolder:
    """A trained system on disk.

    Attributes:
        system: a name of ``SYSTEMS``; ``zero_shot`` is any Whisper without adapters.
        folder: its folder.
        backbone: folder or hub name of the Whisper.
        languages: codes of the languages that it transcribes, in the order of their index.
        adapters: folder with a ``peft`` folder for each expert; for a student, its ``peft`` folder.
        mole_weights: file of MoLE's fusion weights and language classifier.
        conf: the training's ``DECODING_KEYS``, where they are known.
        choices: MoLE: the languages that identification chooses from; None: all of them.
    """

    system: str
    folder: Path
    backbone: str
    languages: tuple[str, ...]
    adapters: Path | None = None
    mole_weights: Path | None = None
    conf: dict[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] | None = None

    @property
    def scored_decoding(self) -> Path | None:
        """The file with the decoding options that the system was scored with, if it was scored."""
        file = self.folder / SCORED_DECODING
        return file if file.is_file() else None

    def adapter_folders(self) -> dict[str, Path]:
        """Return the ``peft`` folder of each language's expert, or of the student."""
        if self.adapters is None:
            return {}
        if self.system in ("experts", "mole"):
            return {lang: self.adapters / lang for lang in self.languages}
        return {self.system: self.adapters}

    def trained_paddings(self) -> dict[Path, str]:
        """Return the padding that each adapter was trained with, and that of the experts' own training.

        Raises:
            FileNotFoundError: an adapter has no weights.
            ValueError: the weights are damaged.
        """
        paddings = {folder: trained_pad_to(folder) for folder in self.adapter_folders().values()}
        noted = self.conf.get("pad_to") if self.system == "experts" else None
        return paddings | ({self.folder: noted} if noted else {})

    @property
    def pad_to(self) -> str | None:
        """The padding of the training, from its configuration or else from the adapters; None: the backbone's own.

        Raises:
            FileNotFoundError: an adapter has no weights.
            ValueError: the weights are damaged, or the experts were trained with different paddings.
        """
        trained = self.trained_paddings()
        if len(set(trained.values())) > 1:
            listed = ", ".join(f"{pad_to}: {folder}" for folder, pad_to in sorted(trained.items()))
            raise ValueError(
                f"the experts of a system must be trained with one pad_to, got {listed} ({FOREIGN_PAD_TO} where an "
                "adapter notes nothing): move those of another pad_to into a folder of their own, or say what an "
                "adapter was trained with: lole add-expert ADAPTER --lang LANG --model SYSTEM --replace --pad_to PAD_TO"
            )
        return self.conf.get("pad_to") or next(iter(trained.values()), None)

    @property
    def share_30s(self) -> float:
        """The share of the training batches that were padded to 30 s, from the configuration or the adapters."""
        noted = map(trained_share_30s, self.adapter_folders().values())
        return self.conf.get("share_30s") or min(noted, default=0.0)

    def sources(self) -> list[Path]:
        """Return the files and folders that the system is read from; a backbone on the hub is none."""
        named = (self.folder, Path(self.backbone), self.mole_weights, *self.adapter_folders().values())
        return [path for path in named if path is not None and path.exists()]


def find_system(folder: Path, backbone: str | None = None, languages: Sequence[str] | None = None) -> SystemFolder:
    """Tell what a folder holds, without reading weights.

    Args:
        folder: a training, an exported system, ``peft`` adapters (or one of them), or a Whisper of ``transformers``.
        backbone: folder or hub name; default: that of the training.
        languages: codes of the languages to choose from; default: those of the training.

    Raises:
        FileNotFoundError: the folder or a part of the system is missing.
        ValueError: it holds no system, its backbone is unknown, or MoLE was not trained for one of the languages.
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
    if adapters := adapters_in(folder):
        languages = tuple(languages or adapters)
        for lang in languages:
            check_language(lang, f"{folder}, whose subfolders are taken for the adapters of languages")
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
    if system.system == "experts" and max_loaded_experts is not None:
        whisper = load_whisper(system.backbone, system.pad_to, system.conf.get("precision", "float32"))
        built = ExpertCache(whisper, system.adapters, max_loaded_experts)
    else:
        built = build_system(system_config(system)).eval()
    if isinstance(built, MoLE):
        tokenizer = make_tokenizer(built.experts.whisper)
        transcriber = MoLETranscriber(built.to(device), tokenizer, search, routing, system.choices)
        built.experts.cast_(built.experts.whisper.precision)  # after the fusion is merged in float32
        return transcriber
    if isinstance(built, Whisper):
        whisper = built.to(device)
        return PromptTranscriber(whisper, make_tokenizer(whisper), None, system.languages, search)
    adapted = built.student if isinstance(built, LoRAKD) else built
    whisper = adapted.cast_(adapted.whisper.precision).whisper.to(device).eval()
    if system.system == "experts":
        fill = "silence" if backbone_pad_to(load_config(system.backbone)) == "30s" else None
        return ExpertTranscriber(adapted, make_tokenizer(whisper), search, fill)
    return PromptTranscriber(whisper, make_tokenizer(whisper), adapted, system.languages, search)


def make_tokenizer(whisper: Whisper) -> WhisperTokenizer:
    """Return the tokenizer of a Whisper's vocabulary."""
    return WhisperTokenizer(whisper.model.config.vocab_size)


def system_config(system: SystemFolder) -> SystemConfig:
    """Return what the builder needs to build a system with its trained weights."""
    options = system.conf | {"system": system.system, "backbone": system.backbone, "pad_to": system.pad_to}
    options |= {"langs": system.languages, "adapters": system.adapters}
    if system.system == "mole":
        options |= {"experts": options.pop("adapters"), "mole_weights": system.mole_weights}
    return SystemConfig.parse(options)


def read_decoding_config(file: Path | None, options: Mapping[str, Any] | None = None) -> Decoding:
    """Read the configuration of a decoding, such as ``conf/decode.yaml``.

    Args:
        file: YAML with ``batch_seconds``, keys of ``SearchConfig``, ``routing`` for MoLE, and ``vad``; None: the
            defaults.
        options: values that override those of the file.

    Raises:
        ValueError: the file is no YAML of these keys and their types.
    """
    conf = merge(load_yaml(file) if file else {}, dict(options or {}))
    batch_seconds, routing, vad = conf.pop("batch_seconds", 160.0), conf.pop("routing", {}), conf.pop("vad", {})
    if isinstance(batch_seconds, bool) or not isinstance(batch_seconds, int | float) or not batch_seconds > 0:
        raise ValueError(f"expected batch_seconds of {file} to be a number above 0, got {batch_seconds!r}")
    search = read_conf(SearchConfig, conf, str(file))
    routing = read_conf(RoutingConfig, routing, f"routing of {file}")
    return Decoding(batch_seconds, search, routing, read_conf(VadConfig, vad, f"vad of {file}"))


def write_decoding_config(folder: Path, decoding: Decoding) -> None:
    """Write the options that test sets were decoded with into a folder, as ``SCORED_DECODING``."""
    conf = {"batch_seconds": decoding.batch_seconds, **asdict(decoding.search), "routing": asdict(decoding.routing)}
    write_text_atomic(folder / SCORED_DECODING, yaml.safe_dump(conf, sort_keys=False))


def _training(folder: Path, backbone: str | None, languages: Sequence[str] | None) -> SystemFolder:
    """Find the parts of a training or an export, a folder with a ``config.yaml``."""
    file = folder / "config.yaml"
    config = compat.rename_config(load_yaml(file), str(file))
    system, adapters, weights, choices = config.get("system"), folder / "adapters", None, None
    if system not in TRAINED_HERE:
        raise ValueError(f"expected system: {', '.join(TRAINED_HERE)} in {file}, got {system!r}")
    backbone, known = backbone or _resolve(config["backbone"], folder), languages or config["langs"]
    if system == "experts":
        known = languages or adapters_in(adapters)  # an added language is not in the configuration
    elif system == "mole":
        adapters, weights, known = Path(_resolve(config["experts"], folder)), folder / MOLE_WEIGHTS, config["langs"]
        choices = tuple(dict.fromkeys(languages)) if languages else None
        if unknown := sorted(set(choices or ()) - set(known)):
            raise ValueError(f"{folder} was trained for {' '.join(known)}, not for {' '.join(unknown)}")
    elif system == "full":
        whisper = next(
            (folder / name for name in WHISPER_FOLDERS if (folder / name).is_dir()), folder / WHISPER_FOLDERS[0]
        )
        adapters, backbone = None, str(whisper)
    else:
        adapters = adapters / STUDENT
    for part in (adapters, weights) if adapters else (Path(backbone),):
        if part is not None and not part.exists():
            raise FileNotFoundError(f"the system in {folder} is not trained to its end: {part} is not there")
    decoding = {key: config[key] for key in DECODING_KEYS if key in config}
    return SystemFolder(system, folder, backbone, tuple(known), adapters, weights, decoding, choices)


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

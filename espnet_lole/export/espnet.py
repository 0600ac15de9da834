"""A system of one adapter, one expert, or a whole Whisper as a stock ASR model of ESPnet, which runs without us."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.export.bundle import ESPNET_META, require_backbone
from espnet_lole.export.espnet_use import comparable_rates, describe_use, pads_to_30s, size_name
from espnet_lole.export.merged import choose_adapter, merge_system
from espnet_lole.export.model_card import model_card
from espnet_lole.export.transformers import transformers_tokenizer
from espnet_lole.inference.load import SystemFolder, read_decoding_config
from espnet_lole.ownership import check_output
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.openai import rename_back, write_checkpoint
from espnet_lole.whisper.sizes import SIZES
from espnet_lole.whisper.tokenizer import WhisperTokenizer

CONFIG, WEIGHTS = "config.yaml", "valid.acc.best.pth"
ESPNET_LANGUAGES = frozenset("ca cs cy de en eu es fa fr it ja ko nl pl pt ru tt zh".split())
"""Languages that ESPnet's ``whisper_language`` knows; others need ``lang_prompt_token``."""


def save_espnet(system: SystemFolder, folder: Path, lang: str | None, licence: str, data: str) -> None:
    """Write an ASR model of ESPnet with ``encoder: whisper`` and ``decoder: whisper``.

    Args:
        system: a student, a multilingual LoRA, experts of which one is exported, or a whole Whisper.
        folder: folder to write; it is replaced if this package made it.
        lang: language of the expert; None for other systems.
        licence: identifier of the licence, for the model card.
        data: description of the training data, for the model card.

    Raises:
        FileNotFoundError: the backbone is neither here nor on the hub.
        ValueError: the system is not one Whisper, or no Whisper of ESPnet; or the folder holds other files, or overlaps
            the system.
    """
    check_output(folder, system.sources())
    choose_adapter(system, lang)
    require_backbone(system)
    whisper, metadata = merge_system(system, lang)
    config = whisper.model.config
    if config.num_mel_bins != 80:
        raise ValueError(
            f"ESPnet's Whisper has 80 mel bins, but {system.backbone} has {config.num_mel_bins}: export it with "
            "--format merged, or train on openai/whisper-large-v2 or a smaller one"
        )
    name = published_name(config)
    with atomic_folder(folder, system.sources()) as made:
        if name is None:
            save_dimensions(config, made)
        torch.save(espnet_state(whisper), made / WEIGHTS)
        conf = espnet_config(whisper, name or size_name(config), metadata.languages)
        (made / CONFIG).write_text(yaml.safe_dump(conf, sort_keys=False, allow_unicode=True), encoding="utf-8")
        meta = {"files": {"asr_model_file": WEIGHTS}, "yaml_files": {"asr_train_config": CONFIG}}
        (made / ESPNET_META).write_text(yaml.safe_dump(meta))
        use = describe_use(
            whisper, name is None, metadata.languages[0], read_decoding_config(system.scored_decoding).search
        )
        metadata = replace(metadata, history=replace(metadata.history, error_rates=comparable_rates(whisper, metadata)))
        card = model_card(metadata, folder.name, licence, data, "espnet", use)
        (made / "README.md").write_text(card, encoding="utf-8")


def espnet_config(whisper: Whisper, name: str, languages: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of ESPnet's ``ASRTask`` that build the model and decode with it."""
    tokens = transformers_tokenizer(WhisperTokenizer(whisper.model.config.vocab_size)).get_vocab()
    return {
        "model": "espnet",
        "model_conf": {
            "ctc_weight": 0.0,
            "extract_feats_in_collect_stats": False,
            "sym_sos": "<|startoftranscript|>",
            "sym_eos": "<|endoftext|>",
        },
        "input_size": 1,
        **dict.fromkeys(("frontend", "specaug", "normalize", "init", "joint_net_conf")),
        **{f"{part}_conf": {} for part in ("frontend", "specaug", "normalize", "ctc")},
        "encoder": "whisper",
        "encoder_conf": {"whisper_model": name, "do_pad_trim": pads_to_30s(whisper)},
        "decoder": "whisper",
        "decoder_conf": {"whisper_model": name},
        "use_preprocessor": True,
        "preprocessor": "default",
        "preprocessor_conf": {
            "whisper_language": next((lang for lang in languages if lang in ESPNET_LANGUAGES), "en"),
            "whisper_task": "transcribe",
        },
        **dict.fromkeys(("non_linguistic_symbols", "cleaner", "g2p")),
        "token_type": "whisper_multilingual",
        "bpemodel": "whisper_multilingual",
        "token_list": [token.replace("Ġ", " ").rstrip() for token in sorted(tokens, key=tokens.get)],
    }


def espnet_state(whisper: Whisper) -> dict[str, Tensor]:
    """Return the weights under the names of ESPnet's ``encoder.encoders`` and ``decoder.decoders``."""
    names = {name: rename_back(name).split(".", 1) for name in whisper.model.model.state_dict()}
    weights = whisper.model.model.state_dict()
    return {f"{part}.{part}s.{rest}": weights[name].contiguous() for name, (part, rest) in names.items()}


def published_name(config: WhisperConfig) -> str | None:
    """Return the name of the published Whisper of these dimensions; None if there is none."""
    keys = (
        *("d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"),
        *("encoder_ffn_dim", "num_mel_bins", "vocab_size", "max_source_positions", "max_target_positions"),
    )
    dims = [getattr(config, key) for key in keys]
    names = (name for name, size in SIZES.items() if [getattr(size.config(), key) for key in keys] == dims)
    return next((name.removeprefix("openai/whisper-") for name in names), None)


def save_dimensions(config: WhisperConfig, folder: Path) -> None:
    """Write a checkpoint of zeros, a few kilobytes, from which ESPnet builds a Whisper of dimensions it does not know.

    openai-whisper reads the digest of a checkpoint from its address, so that the folder of the file has this name.
    """
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    zeros = {name: torch.zeros(()).expand(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(zeros, assign=True)
    file = folder / f"{size_name(config)}.pt"
    write_checkpoint(model, file)
    digest = folder / hashlib.sha256(file.read_bytes()).hexdigest()
    digest.mkdir()
    file.rename(digest / file.name)

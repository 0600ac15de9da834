"""A Whisper in the format of transformers, with all files that transformers and faster-whisper look for."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import transformers
from transformers import GenerationConfig
from transformers.convert_slow_tokenizer import TikTokenConverter

from espnet_lole.whisper.assets import VOCABULARY
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

FILES = ("*config.json", "model*.safetensors", "model*.json", "tokenizer.json", "README.md")
"""What older versions wrote into the folder of a Whisper."""


def save_whisper_model(whisper: Whisper, folder: Path, languages: Sequence[str]) -> None:
    """Write a Whisper of transformers with its tokenizer and feature extractor.

    Args:
        whisper: the Whisper.
        folder: folder to write into.
        languages: codes of the languages that it can identify and transcribe.
    """
    tokenizer = WhisperTokenizer(whisper.model.config.vocab_size)
    whisper.save(folder)
    generation_config(whisper, tokenizer, languages).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    transformers.WhisperFeatureExtractor(feature_size=whisper.model.config.num_mel_bins).save_pretrained(folder)


def save_tokenizer(tokenizer: WhisperTokenizer, folder: Path) -> None:
    """Write the tokenizer so that transformers 4 and 5 read it.

    Version 5 writes the special tokens under a key that version 4 reads as another type, and leaves out the vocabulary
    in the form of version 4; it reads what version 4 wrote.
    """
    converted = transformers_tokenizer(tokenizer)
    converted.save_pretrained(folder)
    converted.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("extra_special_tokens", None)
    config["additional_special_tokens"] = tokenizer.special[1 : tokenizer.timestamp_begin - tokenizer.eot]
    config["added_tokens_decoder"] = {
        str(index): {"content": str(token), "special": token.special}
        for index, token in converted.added_tokens_decoder.items()
    }
    file.write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def generation_config(whisper: Whisper, tokenizer: WhisperTokenizer, languages: Sequence[str]) -> GenerationConfig:
    """Configure the generation of transformers as the backbone does, for these languages.

    The tokens that are suppressed and the attention heads of word times are the backbone's. Where it names none, only
    the special tokens are suppressed. ``return_timestamps`` is left to the runtime, which needs timestamps for audio
    of more than 30 s.
    """
    config = copy.deepcopy(whisper.model.generation_config)
    values = {
        "is_multilingual": True,
        "lang_to_id": {f"<|{lang}|>": tokenizer.language(lang) for lang in languages},
        "task_to_id": {"transcribe": tokenizer.transcribe, "translate": tokenizer.transcribe - 1},
        "no_timestamps_token_id": tokenizer.no_timestamps,
        "prev_sot_token_id": tokenizer.no_timestamps - 2,
        "decoder_start_token_id": tokenizer.sot,
        "bos_token_id": tokenizer.eot,
        "eos_token_id": tokenizer.eot,
        "pad_token_id": tokenizer.eot,
        "max_length": whisper.model.config.max_target_positions,
        "_from_model_config": False,  # else transformers 4 derives another from config.json
    }
    for name, value in values.items():
        setattr(config, name, value)
    if not config.suppress_tokens:
        config.suppress_tokens = list(range(tokenizer.sot, tokenizer.no_timestamps + 1))
    config.begin_suppress_tokens = config.begin_suppress_tokens or []
    if not hasattr(config, "alignment_heads"):  # as in openai-whisper: all heads of the upper half of the decoder
        layers, heads = whisper.model.config.decoder_layers, whisper.model.config.decoder_attention_heads
        config.alignment_heads = [[layer, head] for layer in range(layers // 2, layers) for head in range(heads)]
    for name in ("forced_decoder_ids", "return_timestamps"):
        if hasattr(config, name):
            delattr(config, name)
    return config


def transformers_tokenizer(tokenizer: WhisperTokenizer) -> transformers.PreTrainedTokenizerBase:
    """Build the tokenizer of transformers from the vocabulary of ours."""
    vocabulary, merges = TikTokenConverter().extract_vocab_merges_from_model(str(VOCABULARY))
    vocabulary |= {"<|endoftext|>": tokenizer.eot}
    first_time = tokenizer.timestamp_begin - tokenizer.eot
    special = tokenizer.special[1:first_time]
    if transformers.__version__.startswith("4."):  # which takes files
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder, "vocab.json"), Path(folder, "merges.txt")
            files[0].write_text(json.dumps(vocabulary), encoding="utf-8")
            files[1].write_text("".join(f"{left} {right}\n" for left, right in merges), encoding="utf-8")
            converted = transformers.WhisperTokenizerFast(
                *map(str, files), pad_token="<|endoftext|>", additional_special_tokens=special
            )
    else:
        converted = transformers.WhisperTokenizer(
            vocab=vocabulary, merges=merges, pad_token="<|endoftext|>", extra_special_tokens=special
        )
    converted.add_tokens(tokenizer.special[first_time:])
    return converted

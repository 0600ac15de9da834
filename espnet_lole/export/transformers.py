"""A Whisper in the format of transformers, with all files that transformers and faster-whisper look for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import transformers
import whisper as openai_whisper
from transformers.convert_slow_tokenizer import TikTokenConverter

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

VOCABULARY = str(Path(openai_whisper.__file__).parent / "assets" / "multilingual.tiktoken")


def save_whisper_model(whisper: Whisper, folder: Path, languages: Sequence[str], card: str | None = None) -> None:
    """Write a Whisper of transformers with its tokenizer and feature extractor; the folder appears whole or not at all.

    Args:
        whisper: the Whisper.
        folder: folder to write; it is replaced if it exists.
        languages: codes of the languages that it can identify and transcribe.
        card: text of README.md.
    """
    config = whisper.model.config
    tokenizer = WhisperTokenizer(config.vocab_size)
    with atomic_folder(folder) as made:
        whisper.save(made)
        generation_config(tokenizer, languages, config.max_target_positions).save_pretrained(made)
        transformers_tokenizer(tokenizer).save_pretrained(made)
        transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(made)
        if card is not None:
            (made / "README.md").write_text(card, encoding="utf-8")


def generation_config(
    tokenizer: WhisperTokenizer, languages: Sequence[str], max_length: int
) -> transformers.GenerationConfig:
    """Configure the generation of transformers: any text token may follow, and the language is one of these."""
    return transformers.GenerationConfig(
        is_multilingual=True,
        lang_to_id={f"<|{lang}|>": tokenizer.language(lang) for lang in languages},
        task_to_id={"transcribe": tokenizer.transcribe, "translate": tokenizer.transcribe - 1},
        no_timestamps_token_id=tokenizer.no_timestamps,
        prev_sot_token_id=tokenizer.no_timestamps - 2,
        decoder_start_token_id=tokenizer.sot,
        bos_token_id=tokenizer.eot,
        eos_token_id=tokenizer.eot,
        pad_token_id=tokenizer.eot,
        max_length=max_length,
        suppress_tokens=list(range(tokenizer.sot, tokenizer.no_timestamps + 1)),
        begin_suppress_tokens=[],
        return_timestamps=False,
    )


def transformers_tokenizer(tokenizer: WhisperTokenizer) -> transformers.WhisperTokenizer:
    """Build the tokenizer of transformers from the vocabulary that openai-whisper ships."""
    vocabulary, merges = TikTokenConverter(VOCABULARY).extract_vocab_merges_from_model(VOCABULARY)
    tasks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    converted = transformers.WhisperTokenizer(
        vocab=vocabulary | {"<|endoftext|>": tokenizer.eot},
        merges=merges,
        pad_token="<|endoftext|>",
        extra_special_tokens=[f"<|{name}|>" for name in ("startoftranscript", *tokenizer.languages, *tasks)],
    )
    converted.add_tokens([f"<|{0.02 * i:.2f}|>" for i in range(1501)])
    return converted

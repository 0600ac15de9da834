"""A merged system as a whole Whisper, with all the files that ``transformers`` and ``faster-whisper`` look for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import whisper
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers import WhisperTokenizer as StockTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from espnet_lole.atomic_io import whole_folder
from espnet_lole.lole.adapters import load_adapters as load_bank
from espnet_lole.whisper.tokenizer import WhisperTokenizer

VOCABULARY = Path(whisper.__file__).parent / "assets" / "multilingual.tiktoken"


def save_merged(model: WhisperForConditionalGeneration, adapter: Path, folder: Path, languages: Sequence[str]) -> None:
    """Write a Whisper of ``transformers`` with an adapter in its weights; the folder appears whole or not at all.

    Args:
        model: the backbone, changed in place.
        adapter: folder of the ``peft`` adapter.
        folder: of the checkpoint, replaced if it is there.
        languages: that it can find and be told.

    Raises:
        FileNotFoundError: the folder has no adapter.
        ValueError: it is not a plain LoRA, or does not fit the backbone.
    """
    bank = load_bank(model, adapter.parent, [adapter.name])
    for name, layer in bank.layers.items():
        layer.base.weight.data += layer.scale * layer.lora_B[0].detach() @ layer.lora_A[0].detach()
        model.set_submodule(name, layer.base)
    save_model(model, folder, languages)


def save_model(model: WhisperForConditionalGeneration, folder: Path, languages: Sequence[str]) -> None:
    """Write a Whisper of ``transformers``; the folder appears whole or not at all, and replaces one that is there.

    Args:
        model: the Whisper.
        folder: of the checkpoint.
        languages: that it can find and be told.
    """
    tokens = WhisperTokenizer(model.config.vocab_size)
    model.generation_config = generation_config(model.config, tokens, languages)
    with whole_folder(folder) as made:
        model.save_pretrained(made)
        stock_tokenizer(tokens).save_pretrained(made)
        WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(made)


def generation_config(config: WhisperConfig, tokens: WhisperTokenizer, languages: Sequence[str]) -> GenerationConfig:
    """How ``transformers`` generates: any token of text, the language found among these."""
    return GenerationConfig(
        is_multilingual=True,
        lang_to_id={f"<|{lang}|>": tokens.language(lang) for lang in languages},
        task_to_id={"transcribe": tokens.transcribe, "translate": tokens.transcribe - 1},
        no_timestamps_token_id=tokens.no_timestamps,
        prev_sot_token_id=tokens.no_timestamps - 2,
        decoder_start_token_id=tokens.sot,
        bos_token_id=tokens.eot,
        eos_token_id=tokens.eot,
        pad_token_id=tokens.eot,
        max_length=config.max_target_positions,
        suppress_tokens=list(range(tokens.sot, tokens.no_timestamps + 1)),
        begin_suppress_tokens=[],
        return_timestamps=False,
    )


def stock_tokenizer(tokens: WhisperTokenizer) -> StockTokenizer:
    """The tokenizer of ``transformers``, from the vocabulary that openai-whisper carries."""
    vocabulary, merges = TikTokenConverter(str(VOCABULARY)).extract_vocab_merges_from_model(str(VOCABULARY))
    special = [f"<|{lang}|>" for lang in tokens.languages]
    special = ["<|startoftranscript|>", *special, "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    stock = StockTokenizer(
        vocab=vocabulary | {"<|endoftext|>": tokens.eot},
        merges=merges,
        pad_token="<|endoftext|>",
        extra_special_tokens=[*special, "<|nospeech|>", "<|notimestamps|>"],
    )
    stock.add_tokens([f"<|{0.02 * i:.2f}|>" for i in range(1501)])
    return stock

"""Our systems, and Whispers of ``transformers``, with random weights."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path

import torch
import whisper as openai_whisper
from torch import Tensor
from transformers import GenerationConfig, WhisperForConditionalGeneration

from benchmarks.harness import Size
from espnet_lole.lole.adapters import save_adapter
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.sizes import Size as Dimensions
from espnet_lole.whisper.tokenizer import WhisperTokenizer

LANGS = ("de", "en", "es", "fr", "it", "ru", "tr", "zh")
TOKENIZER = WhisperTokenizer(51865)


def stock(size: Size) -> WhisperForConditionalGeneration:
    """Make a random Whisper that never ends a text by itself, so that all decode the same number of tokens."""
    torch.manual_seed(0)
    config = Dimensions(size.width, size.heads, size.layers, size.layers).config()
    config.suppress_tokens = config.begin_suppress_tokens = None
    with torch.device(size.device):
        model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[TOKENIZER.eot :] = 0.0
    model.generation_config = GenerationConfig(
        bos_token_id=TOKENIZER.eot, eos_token_id=TOKENIZER.eot, pad_token_id=TOKENIZER.eot, is_multilingual=True,
        decoder_start_token_id=TOKENIZER.sot, lang_to_id={f"<|{lang}|>": TOKENIZER.language(lang) for lang in LANGS},
        task_to_id={"transcribe": TOKENIZER.transcribe}, no_timestamps_token_id=TOKENIZER.no_timestamps,
        return_timestamps=False,
    )  # fmt: skip
    return model.eval()


def as_whisper(model: WhisperForConditionalGeneration, size: Size) -> Whisper:
    """Return a Whisper as the project runs it."""
    return Whisper(model, precision=size.precision).to(size.device).eval().requires_grad_(False)


def make_experts(size: Size, languages: int = len(LANGS), rank: int | None = None) -> LoRAExperts:
    """Make random experts of as many languages, the same in all of them, so that merged weights are comparable."""
    codes = [*LANGS, *(code for code in TOKENIZER.languages if code not in LANGS), *(f"x{i}" for i in range(languages))]
    rank = rank or size.rank
    experts = LoRAExperts(as_whisper(stock(size), size), codes[:languages], ExpertConfig(rank, alpha=2.0 * rank))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in experts.layers.values():
            a, b = layer.lora_A[codes[0]], 0.02 * torch.randn(layer.lora_B[codes[0]].shape, generator=generator)
            for lang in experts.languages:
                layer.lora_A[lang].copy_(a)
                layer.lora_B[lang].copy_(b)
    return experts.to(size.device)


def decoding_experts(size: Size, languages: int = len(LANGS), rank: int | None = None) -> LoRAExperts:
    """Make experts for decoding, stored in the precision of the products."""
    return make_experts(size, languages, rank).cast_(size.precision)


@cache
def adapter_folder(size: Size) -> Path:
    """Write the experts as ``peft`` adapters, once a process, and return the folder of the languages' folders."""
    folder = Path(tempfile.mkdtemp())
    experts = make_experts(size)
    for lang in LANGS:
        save_adapter(experts, lang, folder / lang, "")
    return folder


@cache
def _merged(size: Size) -> WhisperForConditionalGeneration:
    experts = make_experts(size)
    for name, layer in experts.layers.items():
        experts.whisper.model.set_submodule(name, layer.merge(LANGS[0]))
    return experts.whisper.model


def merged(size: Size) -> WhisperForConditionalGeneration:
    """Return a Whisper with an expert merged into its weights."""
    return copy.deepcopy(_merged(size))


def utterances(size: Size, count: int, seconds: float | None = None) -> tuple[Tensor, Tensor]:
    """Make noise: samples (B, S) and lengths (B,)."""
    samples = int((seconds or size.seconds) * 16000)
    speech = torch.randn(count, samples, generator=torch.Generator().manual_seed(2)) * 0.1
    return speech.to(size.device), torch.full((count,), samples, device=size.device)


def batch_langs(count: int) -> list[str]:
    """Return the languages of utterances that are decoded together, in turn, sorted as the transcribers sort them."""
    return sorted(LANGS[i % len(LANGS)] for i in range(count))


def texts(size: Size, count: int) -> Tensor:
    """Draw token ids of texts, shape (B, U)."""
    return torch.randint(0, TOKENIZER.eot, (count, size.tokens), generator=torch.Generator().manual_seed(3)).to(
        size.device
    )


def mel30(speech: Tensor) -> Tensor:
    """Compute features of utterances padded to 30 s, (B, 80, 3000), which ``transformers`` requires."""
    return torch.stack([openai_whisper.log_mel_spectrogram(openai_whisper.pad_or_trim(row)) for row in speech])

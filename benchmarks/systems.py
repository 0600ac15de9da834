"""Our systems and their peers, with the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest.mock import patch

import torch
import whisper
from torch import Tensor, nn
from transformers import GenerationConfig, WhisperForConditionalGeneration

from benchmarks.harness import Size
from espnet_lole.espnet_model import ESPnetExpertModel
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.openai import rename
from espnet_lole.whisper.sizes import Size as Shape
from espnet_lole.whisper.tokenizer import WhisperTokens

LANGS = ("de", "en", "es", "fr", "it", "ru", "tr", "zh")
VOCAB, END, START = 51865, 50257, 50258
ESPNET_TARGETS = ["query", "key", "value", "attn.out", "mlp.0", "mlp.2"]


def stock(size: Size) -> WhisperForConditionalGeneration:
    """A random Whisper that never ends a text by itself, so that all decode the same number of tokens."""
    torch.manual_seed(0)
    config = Shape(size.width, size.heads, size.layers, size.layers).config()
    config.suppress_tokens = config.begin_suppress_tokens = None
    with torch.device(size.device):
        model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[END:] = 0.0
    tokens = WhisperTokens(VOCAB)
    model.generation_config = GenerationConfig(
        bos_token_id=END, eos_token_id=END, pad_token_id=END, decoder_start_token_id=START, is_multilingual=True,
        lang_to_id={f"<|{lang}|>": i for lang, i in tokens.languages.items()}, task_to_id={"transcribe": tokens.transcribe},
        no_timestamps_token_id=tokens.no_timestamps, return_timestamps=False,
    )  # fmt: skip
    return model.eval()


def ours(size: Size, languages: int | None = len(LANGS), rank: int | None = None) -> tuple[Backbone, ExpertBank | None]:
    """A backbone with random experts of as many languages, the same in all of them; None: without."""
    backbone = driven(stock(size), size)
    if languages is None:
        return backbone, None
    codes = list(LANGS[:languages]) + [f"x{i}" for i in range(len(LANGS), languages)]
    rank = rank or size.rank
    bank = ExpertBank(backbone.model, codes, ExpertConfig(rank, 2.0 * rank))
    generator = torch.Generator().manual_seed(1)
    for layer in bank.layers.values():
        layer.lora_A.data[:] = layer.lora_A.data[:1].clone()
        layer.lora_B.data[:] = torch.randn(layer.lora_B.shape[1:], generator=generator).to(layer.lora_B) * 0.02
    return backbone, bank


def driven(model: WhisperForConditionalGeneration, size: Size) -> Backbone:
    """A Whisper as the project runs it."""
    return Backbone(model, precision=size.precision).to(size.device).eval().requires_grad_(False)


def mixed(size: Size) -> AbstractContextManager:
    """The context in which the trainers of the peers run a model: torch's autocast, if the precision is a low one."""
    return nullcontext() if size.precision == torch.float32 else torch.autocast(size.device, size.precision)


def trainee(size: Size, languages: int = len(LANGS), rank: int | None = None) -> ESPnetExpertModel:
    """Experts ready to train."""
    backbone, bank = ours(size, min(languages, len(LANGS)), rank)
    if languages > len(LANGS):
        codes = list(WhisperTokens(VOCAB).languages)
        backbone = driven(stock(size), size)
        bank = ExpertBank(backbone.model, codes[:languages], ExpertConfig(rank or size.rank, 2.0 * (rank or size.rank)))
    return ESPnetExpertModel(backbone, bank, WhisperTokens(VOCAB)).to(size.device).train()


def utterances(size: Size, count: int, seconds: float | None = None) -> tuple[Tensor, Tensor]:
    """Noise: samples (B, S) and lengths (B,)."""
    samples = int((seconds or size.seconds) * 16000)
    speech = torch.randn(count, samples, generator=torch.Generator().manual_seed(2)) * 0.1
    return speech.to(size.device), torch.full((count,), samples, device=size.device)


def texts(size: Size, count: int) -> Tensor:
    """Random token ids of texts, shape (B, U)."""
    return torch.randint(0, END, (count, size.tokens), generator=torch.Generator().manual_seed(3)).to(size.device)


def mel30(speech: Tensor) -> Tensor:
    """Features of utterances padded to 30 s, (B, 80, 3000), as ``transformers`` wants them."""
    return torch.stack([whisper.log_mel_spectrogram(whisper.pad_or_trim(row)) for row in speech])


@contextmanager
def openai_weights(model: WhisperForConditionalGeneration) -> Iterator[None]:
    """Within the context, ``whisper.load_model`` gives this model instead of downloading one."""
    config, state = model.config, model.model.state_dict()
    made = whisper.model.Whisper(
        whisper.model.ModelDimensions(
            config.num_mel_bins, config.max_source_positions, config.d_model, config.encoder_attention_heads,
            config.encoder_layers, config.vocab_size, config.max_target_positions, config.d_model,
            config.decoder_attention_heads, config.decoder_layers,
        )
    )  # fmt: skip
    made.load_state_dict({name: state[rename(name)] for name in made.state_dict()})
    with (
        patch.object(whisper, "load_model", lambda *_args, **_kwargs: made),
        patch.object(
            whisper.audio, "N_MELS", config.num_mel_bins, create=True
        ),  # ESPnet imports it; newer versions lack it
    ):
        yield


def espnet(model: WhisperForConditionalGeneration) -> nn.Module:
    """ESPnet's own Whisper with these weights."""
    from espnet2.asr.ctc import CTC
    from espnet2.asr.decoder.whisper_decoder import OpenAIWhisperDecoder
    from espnet2.asr.encoder.whisper_encoder import OpenAIWhisperEncoder
    from espnet2.asr.espnet_model import ESPnetASRModel

    with openai_weights(model):
        encoder, decoder = (
            OpenAIWhisperEncoder(whisper_model="base"),
            OpenAIWhisperDecoder(VOCAB, 1, whisper_model="base"),
        )
    tokens = [str(i) for i in range(VOCAB)]
    return ESPnetASRModel(
        VOCAB, tokens, None, None, None, None, encoder, None, decoder, CTC(VOCAB, encoder.output_size()), None,
        ctc_weight=0.0, report_cer=False, report_wer=False, sym_sos=str(START), sym_eos=str(END),
    ).to(model.device)  # fmt: skip


def espnet_lora(size: Size) -> nn.Module:
    """ESPnet's own Whisper with one LoRA of loralib."""
    from espnet2.layers.create_adapter_fn import create_lora_adapter

    model = espnet(stock(size))
    create_lora_adapter(model, size.rank, 2 * size.rank, 0.0, ESPNET_TARGETS)
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    return model.to(size.device).train()

"""A tiny random Whisper that behaves like the real ones, with few and narrow layers; and faults."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration
from whisper import model as openai_whisper

from espnet_lole.lole.experts import ExpertConfig, LoRAExperts
from espnet_lole.lole.mole import MoLE
from espnet_lole.whisper.model import Encoded, Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

TEXTS = ["ein Euro", "two litres", "drei", "四米"]
LANGS = ["de", "en", "de", "zh"]


BOUND = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
"""Before a command: the permissions of files and folders hold for root, too."""


class Evil:
    """Makes a file when it is read from a pickle."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.file,))


def full_disk(*_: object, **__: object) -> None:
    """In the place of a function that writes."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Within the context, the system lets no file of this process grow beyond this many bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tiny_whisper(seed: int = 0, mels: int = 80, vocab: int = 51865, width: int = 16) -> WhisperForConditionalGeneration:
    """A random Whisper of 3 + 2 layers."""
    torch.manual_seed(seed)
    config = WhisperConfig(
        d_model=width, encoder_layers=3, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, vocab_size=vocab, num_mel_bins=mels,
        bos_token_id=50257, eos_token_id=50257, pad_token_id=50257, decoder_start_token_id=50258,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():  # the default start is so small that every output looks the same
        for name, p in model.named_parameters():
            if "embed_positions" not in name and "layer_norm" not in name:
                p.normal_(0.0, 0.3)
    return model.eval()


def openai_model(model: WhisperForConditionalGeneration) -> openai_whisper.Whisper:
    """Return the same weights in openai-whisper's own model."""
    c = model.config
    dims = openai_whisper.ModelDimensions(
        c.num_mel_bins, 1500, c.d_model, c.encoder_attention_heads, c.encoder_layers,
        c.vocab_size, 448, c.d_model, c.decoder_attention_heads, c.decoder_layers,
    )  # fmt: skip
    names = [
        ("layers", "blocks"), ("fc1", "mlp.0"), ("fc2", "mlp.2"), ("final_layer_norm", "mlp_ln"),
        ("encoder_attn_layer_norm", "cross_attn_ln"), ("encoder_attn", "cross_attn"),
        ("self_attn_layer_norm", "attn_ln"), ("self_attn", "attn"),
        ("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"),
        ("encoder.embed_positions.weight", "encoder.positional_embedding"),
        ("decoder.embed_positions.weight", "decoder.positional_embedding"), ("embed_tokens", "token_embedding"),
        ("encoder.layer_norm", "encoder.ln_post"), ("decoder.layer_norm", "decoder.ln"),
    ]  # fmt: skip
    state = {}
    for name, value in model.model.state_dict().items():
        for name_here, name_there in names:
            name = name.replace(name_here, name_there)
        state[name] = value
    whisper = openai_whisper.Whisper(dims)
    whisper.load_state_dict(state)
    return whisper.eval()


def random_experts(
    langs: Sequence[str] = ("de", "en", "zh"),
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 0,
    whisper: Whisper | None = None,
    **config: Any,
) -> LoRAExperts:
    """Return experts, by default on the tiny Whisper, that change its outputs: B is not zero."""
    whisper = Whisper(tiny_whisper()).eval() if whisper is None else whisper
    experts = LoRAExperts(whisper, langs, ExpertConfig(rank=rank, alpha=alpha, **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in experts.layers.values():
            for b in layer.lora_B.values():
                b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
    return experts


def run_frontend(mole: MoLE, speech: tuple[torch.Tensor, torch.Tensor]) -> tuple[Encoded, torch.Tensor]:
    """Return MoLE's states after the shared layers, and language logits, of utterances."""
    shallow, _, logits = mole.frontend(mole.experts.whisper.embed_speech(*speech))
    return shallow, logits


def make_batch(model, rows: list[int], speech: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Utterances of the fixture ``speech`` with texts, as ESPnet's collate function gives them."""
    texts = [torch.tensor(model.tokenizer.encode(TEXTS[i], LANGS[i])) for i in rows]
    lengths = speech[1][rows]
    return {
        "speech": speech[0][rows, : int(lengths.max())],
        "speech_lengths": lengths,
        "text": torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1),
        "text_lengths": torch.tensor([len(t) for t in texts]),
        "lang": torch.tensor([[model.languages.index(LANGS[i])] for i in rows]),
    }


@pytest.fixture
def whisper() -> Whisper:
    """A tiny Whisper for inputs of any length."""
    return Whisper(tiny_whisper()).eval()


@pytest.fixture(scope="session")
def tokenizer() -> WhisperTokenizer:
    """Whisper's tokenizer."""
    return WhisperTokenizer(51865)


@pytest.fixture
def speech() -> tuple[torch.Tensor, torch.Tensor]:
    """Four noisy utterances of different lengths, (4, S) and (4,)."""
    lengths = torch.tensor([16000, 9001, 12345, 5000])
    noise = torch.randn(4, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    return noise, lengths


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    """A recipe's folder with trained systems; read only."""
    from systems import make_recipe

    return make_recipe(tmp_path_factory.mktemp("recipe"))

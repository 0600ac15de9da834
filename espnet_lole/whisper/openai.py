"""Whisper's weights in the form of openai/whisper: a ``.pt`` file of dimensions and tensors."""

from __future__ import annotations

import base64
import gzip
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from espnet_lole.atomic_io import atomic_write
from espnet_lole.whisper.sizes import Size
from espnet_lole.whisper.tokenizer import WhisperTokenizer

SUFFIX = ".pt"
_NAMES = (  # part of a name there -> in transformers; the order matters
    ("blocks.", "layers."),
    ("cross_attn_ln.", "encoder_attn_layer_norm."),
    ("attn_ln.", "self_attn_layer_norm."),
    ("cross_attn.", "encoder_attn."),
    (".attn.", ".self_attn."),
    ("query.", "q_proj."),
    ("key.", "k_proj."),
    ("value.", "v_proj."),
    ("attn.out.", "attn.out_proj."),
    ("mlp_ln.", "final_layer_norm."),
    ("mlp.0.", "fc1."),
    ("mlp.2.", "fc2."),
    ("encoder.ln_post.", "encoder.layer_norm."),
    ("decoder.ln.", "decoder.layer_norm."),
    ("token_embedding.", "embed_tokens."),
    ("positional_embedding", "embed_positions.weight"),
)
_ALIGNMENT_HEADS = {
    "tiny": "ABzY8bu8Lr0{>%RKn9Fp%m@SkK7Kt=7ytkO",
    "base": "ABzY8KQ!870{>%RzyTQH3`Q^yNP!>##QT-<FaQ7m",
    "small": "ABzY8DmU6=0{>%Rpa?J`kvJ6qF(V^F86#Xh7JUGMK}P<N0000",
    "medium": "ABzY8B0Jh+0{>%R7}kK1fFL7w6%<-Pf*t^=N)Qr&0RR9",
    "large-v1": "ABzY8r9j$a0{>%R7#4sLmoOs{s)o3~84-RPdcFk!JR<kSfC2yj",
    "large-v2": "ABzY8zd+h!0{>%R7=D0pU<_bnWW*tkYAhobTNnu$jnkEkXqp)j;w1Tzk)UH3X%SZd&fFZ2fC2yj",
    "large-v3": "ABzY8gWO1E0{>%R7(9S+Kn!D~%ngiGaR?*L!iJG9p-nab0JQ=-{D1-g00",
    "large-v3-turbo": "ABzY8j^C+e0{>%RARaKHP%t(lGR*)0g!tONPyhe`",
}
"""Name of a multilingual checkpoint -> its heads whose attention follows time, as in openai/whisper: a boolean per head
of each decoder layer, zipped, in base 85."""
_OTHER_NAMES = {"large": "large-v3", "turbo": "large-v3-turbo"}
_HEADS_BY_SIZE = {
    (4, 6, 80): "tiny",
    (6, 8, 80): "base",
    (12, 12, 80): "small",
    (24, 16, 80): "medium",
    (32, 20, 128): "large-v3",
    (4, 20, 128): "large-v3-turbo",
}
"""Decoder layers, heads and mel bins -> the only published checkpoint that has so many."""


def read_config(file: Path) -> WhisperConfig:
    """Read the configuration of the model in a ``.pt`` file, without its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of openai/whisper.
    """
    return _config(_load(file)["dims"])


def read_model(file: Path) -> WhisperForConditionalGeneration:
    """Read the model in a ``.pt`` file, in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of openai/whisper, or its tensors do not fit its dimensions.
    """
    checkpoint = _load(file)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(_config(checkpoint["dims"]))
    state = {f"model.{rename(name)}": value.float() for name, value in checkpoint["model_state_dict"].items()}
    state["proj_out.weight"] = state.get("model.decoder.embed_tokens.weight")
    expected = {name: value.shape for name, value in model.state_dict().items()}
    got = {name: value.shape for name, value in state.items() if value is not None}
    if wrong := sorted(n for n in expected | got if expected.get(n) != got.get(n)):
        raise ValueError(
            f"expected in {file} the tensors of its dims, got {len(wrong)} that differ, e.g. {wrong[0]}: "
            f"{got.get(wrong[0])} instead of {expected.get(wrong[0])}: fetch the file again"
        )
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    configure_generation(model, file.stem)
    return model


def write_checkpoint(model: WhisperForConditionalGeneration, file: Path) -> None:
    """Write a model as a ``.pt`` file of openai/whisper, in the precision of its tensors.

    Raises:
        OSError: it cannot be written, e.g. because the disk is full.
    """
    c = model.config
    dims = {
        "n_mels": c.num_mel_bins,
        "n_audio_ctx": c.max_source_positions,
        "n_audio_state": c.d_model,
        "n_audio_head": c.encoder_attention_heads,
        "n_audio_layer": c.encoder_layers,
        "n_vocab": c.vocab_size,
        "n_text_ctx": c.max_target_positions,
        "n_text_state": c.d_model,
        "n_text_head": c.decoder_attention_heads,
        "n_text_layer": c.decoder_layers,
    }
    state = {
        rename_back(name.removeprefix("model.")): value
        for name, value in model.state_dict().items()
        if name != "proj_out.weight"  # the token embedding
    }
    with atomic_write(file) as temporary:
        torch.save({"dims": dims, "model_state_dict": state}, temporary)


def configure_generation(model: WhisperForConditionalGeneration, name: str) -> None:
    """Set the generation configuration that OpenAI's code gives a checkpoint: suppressed tokens, heads of word times.

    Args:
        model: gets the configuration.
        name: of the checkpoint, e.g. ``large-v2``, which alone tells the heads of models of equal dimensions.
    """
    config, generation = model.config, model.generation_config
    tokenizer = WhisperTokenizer(config.vocab_size)
    generation.suppress_tokens = tokenizer.suppressed
    generation.begin_suppress_tokens = [*tokenizer.encode("", "en"), tokenizer.eot]
    size = config.decoder_layers, config.decoder_attention_heads, config.num_mel_bins
    names = [_OTHER_NAMES.get(name, name), _HEADS_BY_SIZE.get(size)]
    if known := next((_ALIGNMENT_HEADS[n] for n in names if n in _ALIGNMENT_HEADS), None):
        flags = np.frombuffer(gzip.decompress(base64.b85decode(known)), dtype=bool)
        if flags.size == size[0] * size[1]:
            generation.alignment_heads = np.argwhere(flags.reshape(size[:2])).tolist()


def rename(name: str) -> str:
    """Return the name in ``transformers`` of a tensor of openai/whisper."""
    for part, replacement in _NAMES:
        name = name.replace(part, replacement)
    return name


def rename_back(name: str) -> str:
    """Return the name in openai/whisper of a tensor of ``transformers``, without its prefix ``model.``."""
    for part, replacement in reversed(_NAMES):
        name = name.replace(replacement, part)
    return name


def _load(file: Path) -> dict[str, Mapping[str, int] | Mapping[str, Tensor]]:
    """Load the dictionary in the file, whose tensors stay on disk until they are used."""
    if not file.is_file():
        raise FileNotFoundError(f"expected a checkpoint of openai/whisper at {file}, found none: correct --backbone")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"expected a checkpoint of openai/whisper, got in {file}: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(checkpoint, dict) or not {"dims", "model_state_dict"} <= checkpoint.keys():
        raise ValueError(
            f"expected dims and model_state_dict, as openai/whisper saves them, got another file in {file}"
        )
    return checkpoint


def _config(dims: Mapping[str, int]) -> WhisperConfig:
    size = Size(
        width=dims["n_audio_state"],
        heads=dims["n_audio_head"],
        encoder_layers=dims["n_audio_layer"],
        decoder_layers=dims["n_text_layer"],
        mels=dims["n_mels"],
        vocab=dims["n_vocab"],
    )
    return size.config(dims["n_audio_ctx"], dims["n_text_ctx"])

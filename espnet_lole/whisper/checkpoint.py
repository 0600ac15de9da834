"""Whisper's weights from the hub, a local folder or OpenAI's own file, and a fingerprint of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from espnet_lole.whisper import openai
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.sizes import SIZES


def load_config(name: str) -> WhisperConfig:
    """The configuration of a backbone.

    Args:
        name: a hub name such as ``openai/whisper-medium``, a local folder in the format of ``transformers``, or a ``.pt`` file
            of openai/whisper.

    Raises:
        FileNotFoundError: it is neither here nor on the hub.
        ValueError: the ``.pt`` file is no checkpoint of openai/whisper.
    """
    if name.endswith(openai.SUFFIX):
        return openai.read_config(Path(name))
    try:
        return WhisperConfig.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(
            f"expected backbone to be a folder of a transformers Whisper, a .pt file of OpenAI's or a name on the hub, "
            f"got {name!r}: {error}"
        ) from error


PRECISIONS = ("float32", "bfloat16", "float16", "auto")
"""Names of ``Backbone``'s precision; ``auto`` is bfloat16 where the hardware multiplies it, else float32."""


def precision(name: str) -> torch.dtype:
    """The precision of that name on this machine.

    Raises:
        ValueError: no such name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"expected precision: {', '.join(PRECISIONS)}, got {name!r}")
    if name != "auto":
        return getattr(torch, name)
    gpu = torch.cuda.is_available()
    native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def load_backbone(name: str, window: str | None = None, precision_name: str = "float32") -> Backbone:
    """The backbone with its weights, in evaluation mode.

    Args:
        name: as for ``load_config``.
        window: as for ``Backbone``; None: that of the weights' training, which this project notes in ``config.json``, else
            ``"30s"``: OpenAI's weights know by the silence that speech has ended, and repeat it without.
        precision_name: one of ``PRECISIONS``.

    Raises:
        FileNotFoundError: it is neither here nor on the hub.
        ValueError: it is no Whisper, or the window or the precision is unknown.
    """
    config = load_config(name)
    if config.model_type != "whisper":
        raise ValueError(f"expected a Whisper, got a checkpoint of {config.model_type!r} in {name}")
    window = window or getattr(config, "window", "30s")
    return Backbone(_read_model(name), window, precision(precision_name)).eval()


def _read_model(name: str) -> WhisperForConditionalGeneration:
    """The model with its weights, in float32."""
    if name.endswith(openai.SUFFIX):
        return openai.read_model(Path(name))
    try:
        return WhisperForConditionalGeneration.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    except OSError as error:  # weights in pickles, which could run code, are not looked for
        raise FileNotFoundError(f"expected the weights of a Whisper as safetensors in {name}: {error}") from error


def empty_backbone(name: str, window: str = "short", precision_name: str = "float32") -> Backbone:
    """The backbone on the meta device: shapes without weights. The published sizes are known without a network.

    Raises:
        FileNotFoundError: it is none of the published names, and neither here nor on the hub.
        ValueError: the window or the precision is unknown.
    """
    config = SIZES[name].config() if name in SIZES else load_config(name)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    return Backbone(model, window, precision(precision_name)).eval()


def fingerprint(backbone: Backbone) -> int:
    """A 48-bit digest of the decoder's positions and of every layer norm: another Whisper has another.

    These are in float32 whatever the precision of the products, so that a system trained in one loads in another. 0 for a
    backbone on the meta device, which has no weights.
    """
    if backbone.encoder.conv1.weight.is_meta:
        return 0
    digest = hashlib.sha256()
    for name, weight in sorted(backbone.model.state_dict().items()):
        if name.endswith(("decoder.embed_positions.weight", "layer_norm.weight", "layer_norm.bias")):
            digest.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:6], "big")


_FINGERPRINT = "_fingerprint"


def add_fingerprints(state: Mapping[str, Tensor], fingerprints: Mapping[str, int]) -> dict[str, Tensor]:
    """A checkpoint's tensors, and the fingerprint of each frozen part that it does not hold."""
    return dict(state) | {f"{n}{_FINGERPRINT}": torch.tensor(v, dtype=torch.float64) for n, v in fingerprints.items()}


def check_fingerprints(state: dict[str, Tensor], fingerprints: Mapping[str, int]) -> None:
    """Take the fingerprints out of a checkpoint, and compare them.

    Raises:
        ValueError: the checkpoint was made on another frozen part.
    """
    for part, value in fingerprints.items():
        found = state.pop(f"{part}{_FINGERPRINT}", None)
        if found is None or int(found) != value:
            raise ValueError(
                f"expected a checkpoint trained on the same {part}, got one made on another: give the {part} of its training "
                f"({part} in the config.yaml beside it)"
            )

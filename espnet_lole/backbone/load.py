"""Whisper's weights from the hub or from a local folder, and a fingerprint of them."""

from __future__ import annotations

import hashlib

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from espnet_lole.backbone.whisper import Backbone


def load_config(name: str) -> WhisperConfig:
    """The configuration of a backbone.

    Args:
        name: a hub name such as ``openai/whisper-medium``, or a local folder in the format of ``transformers``.

    Raises:
        FileNotFoundError: it is neither here nor on the hub.
    """
    try:
        return WhisperConfig.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(
            f"expected backbone to be a folder of a transformers Whisper or a name on the hub, got {name!r}: {error}"
        ) from error


PRECISIONS = ("float32", "bfloat16", "auto")
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


def load_backbone(name: str, window: str = "short", precision_name: str = "float32") -> Backbone:
    """The backbone with its weights, in evaluation mode.

    Raises:
        FileNotFoundError: it is neither here nor on the hub.
        ValueError: it is no Whisper, or the window or the precision is unknown.
    """
    config = load_config(name)
    if config.model_type != "whisper":
        raise ValueError(f"expected a Whisper, got a checkpoint of {config.model_type!r} in {name}")
    try:
        model = WhisperForConditionalGeneration.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    except OSError as error:  # weights in pickles, which could run code, are not looked for
        raise FileNotFoundError(f"expected the weights of a Whisper as safetensors in {name}: {error}") from error
    return Backbone(model, window, precision(precision_name)).eval()


def fingerprint(backbone: Backbone) -> int:
    """A 48-bit digest of the frozen weights' first convolution and of every layer norm: another Whisper has another."""
    digest = hashlib.sha256()
    for name, weight in sorted(backbone.model.state_dict().items()):
        if name.endswith(("conv1.weight", "layer_norm.weight", "layer_norm.bias")):
            digest.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:6], "big")

"""Load Whisper's weights from the hub, a local folder or OpenAI's own file, and compute a fingerprint of them."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from espnet_lole import compat
from espnet_lole.whisper import openai
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.sizes import SIZES

PRECISIONS = ("float32", "bfloat16", "auto")
"""Names of the precision of matrix products; ``auto`` is bfloat16 where the hardware multiplies it, else float32."""


def load_config(name: str) -> WhisperConfig:
    """Load the configuration of a Whisper.

    Args:
        name: a hub name such as ``openai/whisper-medium``, a local folder in the format of ``transformers``, or a
            ``.pt`` file of openai/whisper.

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


def precision_dtype(name: str) -> torch.dtype:
    """Return the precision of that name on this machine.

    Raises:
        ValueError: there is no such name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"expected precision: {', '.join(PRECISIONS)}, got {name!r}")
    if name != "auto":
        return getattr(torch, name)
    gpu = torch.cuda.is_available()
    native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def load_whisper(
    name: str, pad_to: str | None = None, precision: str = "float32", share_30s: float | None = None
) -> Whisper:
    """Load a Whisper with its weights, frozen and in evaluation mode.

    Args:
        name: as for ``load_config``.
        pad_to: as for ``Whisper``; None: as the weights were trained, which this project notes in ``config.json``, or
            ``"30s"`` for weights that note nothing, because OpenAI's detect the end of speech by the silence after it.
        precision: one of ``PRECISIONS``.
        share_30s: as for ``Whisper``; None: as the weights were trained.

    Raises:
        FileNotFoundError: it is neither here nor on the hub.
        ValueError: it is no Whisper, its weights are damaged, or ``pad_to`` or the precision is unknown.
    """
    config = load_config(name)
    if config.model_type != "whisper":
        raise ValueError(f"expected a Whisper, got a checkpoint of {config.model_type!r} in {name}")
    if share_30s is None:
        share_30s = getattr(config, "share_30s", 0.0)
    whisper = Whisper(_read_model(name), pad_to or trained_pad_to(config), precision_dtype(precision), share_30s)
    return whisper.requires_grad_(False).eval()


def trained_pad_to(config: WhisperConfig) -> str:
    """Return the padding that the weights of a configuration were trained with."""
    if hasattr(config, "window") and not hasattr(config, "pad_to"):
        return compat.pad_to(config.window)
    return getattr(config, "pad_to", "30s")


def weight_files(name: str) -> list[Path]:
    """Return the files of a Whisper's weights, downloaded if it is a name on the hub; none if there are none.

    Args:
        name: as for ``load_config``.
    """
    if name.endswith(openai.SUFFIX):
        return [Path(name)]
    for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        with suppress(OSError):
            found = Path(cached_file(name, file))
            if file == SAFE_WEIGHTS_NAME:
                return [found]
            shards = json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()
            return [Path(cached_file(name, shard)) for shard in sorted(set(shards))]
    return []


def _read_model(name: str) -> WhisperForConditionalGeneration:
    """Read the model with its weights, in float32."""
    if name.endswith(openai.SUFFIX):
        return openai.read_model(Path(name))
    try:
        model = WhisperForConditionalGeneration.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    except OSError as error:  # pickled weights, which could run code, are not looked for
        raise FileNotFoundError(f"expected the weights of a Whisper as safetensors in {name}: {error}") from error
    except SafetensorError as error:
        raise ValueError(f"the weights of the Whisper {name} are damaged ({error}): copy or load them again") from error
    with suppress(OSError):  # transformers drops Whisper's own keys from a file with the mark _from_model_config
        model.generation_config = GenerationConfig.from_pretrained(name, _from_model_config=False)
    return model


def empty_whisper(name: str, pad_to: str = "none", precision: str = "float32") -> Whisper:
    """Build a Whisper on the meta device, shapes without weights; the published sizes are known without a network.

    Raises:
        FileNotFoundError: it is none of the published names, and neither here nor on the hub.
        ValueError: ``pad_to`` or the precision is unknown.
    """
    config = SIZES[name].config() if name in SIZES else load_config(name)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    return Whisper(model, pad_to, precision_dtype(precision)).requires_grad_(False).eval()


def fingerprint(whisper: Whisper) -> int:
    """Compute a 48-bit digest of the decoder's positions and of every layer norm, which differs between Whispers.

    These are in float32 whatever the precision of the products, so that a system trained in one precision loads in
    another. Returns 0 on the meta device, which has no weights.
    """
    if whisper.device.type == "meta":
        return 0
    digest = hashlib.sha256()
    for name, weight in sorted(whisper.model.state_dict().items()):
        if name.endswith(("decoder.embed_positions.weight", "layer_norm.weight", "layer_norm.bias")):
            digest.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:6], "big")

"""What the files of a ``peft`` adapter mean: its configuration, the names of its weights, and each linear's scale."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
"""peft's name of the model that it wraps."""

READ_FIELDS = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "base_model_name_or_path",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
)  # fmt: skip
"""Fields of ``LoraConfig`` that say what is adapted, and by which scale."""
INERT_FIELDS = (
    "peft_type", "peft_version", "task_type", "auto_mapping", "revision", "inference_mode", "runtime_config",
    "lora_dropout", "init_lora_weights", "eva_config", "corda_config", "loftq_config", "lora_ga_config",
    "megatron_core", "qalora_group_size",
)  # fmt: skip
"""Fields that leave the trained function alone, those of initialisations included, which are checked by their name."""
PLAIN_INITS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
"""Values of ``init_lora_weights`` that leave the weights of the backbone as they are."""
CONVERTED_INITS = ("pissa", "olora", "corda", "lora_ga")
"""Beginnings of the values that change the backbone's weights and that peft converts."""

_WRAPPERS = r"(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
"""Modules that torch puts around others: compiled, data-parallel, sharded, recomputed."""
_KEY = re.compile(rf"(?:{_WRAPPERS})*(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])(?:\.([^.]+))?\.weight")

Value = TypeVar("Value")


def read_config(folder: Path) -> LoraConfig:
    """Read the configuration of an adapter that is a plain LoRA: ``W0 + s B A``, with the backbone's own W0.

    Raises:
        ValueError: it is damaged or no plain LoRA. A field that is not known to be harmless must be off.
    """
    file = folder / CONFIG
    try:
        conf = json.loads(file.read_bytes())
        if not isinstance(conf, dict) or conf.get("peft_type") != "LORA":
            got = conf.get("peft_type") if isinstance(conf, dict) else conf
            raise ValueError(f"expected a LoRA adapter, got peft_type {got!r}")
        _check_plain(conf)
        return LoraConfig(**{name: conf[name] for name in READ_FIELDS if name in conf})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: {error}") from error


def _check_plain(conf: Mapping[str, Any]) -> None:
    """Refuse what is more than a LoRA, and a LoRA of changed weights."""
    others = {name: value for name, value in conf.items() if name not in (*READ_FIELDS, *INERT_FIELDS)}
    if used := [name for name, value in others.items() if value and value != "none"]:
        raise ValueError(f"expected a plain LoRA adapter, got one with {used}: merge it, or train it without")
    init = str(conf.get("init_lora_weights", True)).lower()
    if init.startswith(CONVERTED_INITS):
        raise ValueError(
            f"init_lora_weights: {init} changed the weights of the backbone, which the adapter needs and does not "
            "have: convert it with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...), as "
            "docs/add_language.md shows"
        )
    if init not in PLAIN_INITS:
        raise ValueError(
            f"init_lora_weights: {init} is not known to leave the weights of the backbone as they are: train the "
            "adapter with init_lora_weights: true, or merge it into its own backbone"
        )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the weights as they are in the file, safetensors before pickled ones.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged, or the pickle holds more than tensors.
    """
    file = next((folder / name for name in (WEIGHTS, PICKLE) if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"expected a peft adapter with {WEIGHTS} in {folder}: there is none")
    try:
        tensors = load_peft_weights(str(folder), device="cpu")  # pickles are read with weights_only
    except SafetensorError as error:
        raise _damaged(file, error) from error
    except Exception as error:  # torch.load raises errors of many kinds
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"expected a dictionary of tensors in {file}: save the adapter with peft's save_pretrained")
    return tensors


@contextmanager
def open_weights(folder: Path) -> Iterator[safe_open]:
    """Open an adapter's safetensors, to read the header without the weights.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        remedy = f": `lole add-expert` reads {PICKLE} and writes it" if (folder / PICKLE).is_file() else ""
        raise FileNotFoundError(f"expected a peft adapter with {WEIGHTS} in {folder}, which is not there{remedy}")
    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except SafetensorError as error:
        raise _damaged(file, error) from error


def read_shapes(folder: Path) -> dict[str, dict[str, list[int]]]:
    """Read the shapes of A (R, D_in) and B (D_out, R) of each adapted linear, without the weights.

    Raises:
        FileNotFoundError: there are no safetensors.
        ValueError: they are damaged, or hold other weights.
    """
    with open_weights(folder) as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  # not a dict
    return group_factors(shapes, folder)[0]


def group_factors(
    values: Mapping[str, Value], folder: Path
) -> tuple[dict[str, dict[str, Value]], dict[str, tuple[str, str]]]:
    """Group the entries of an adapter's file by the linear that they adapt.

    Wrappers of torch, the name of the adapter, and the missing ``model.`` of an adapter of a bare ``WhisperModel`` are
    understood.

    Returns:
        A and B by the linear's name in ``WhisperForConditionalGeneration``; and the two names that the linear may have
        had in the model that peft adapted, with torch's wrappers and without.

    Raises:
        ValueError: there are other weights, several adapters, no weights at all, or one factor without the other.
    """
    factors, names, adapters = {}, {}, {}
    for key, value in values.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(
                f"expected weights of lora_A and lora_B of linears alone, got {key!r} in {folder}: train without other "
                "weights, and save the adapter with peft's save_pretrained"
            )
        inner = re.sub(rf"(?:^|(?<=\.)){_WRAPPERS}", "", match[1])
        linear = f"model.{inner}" if inner.startswith(("encoder.", "decoder.")) else inner
        adapters.setdefault(match[3], key)
        if len(adapters) > 1 or match[2] in factors.setdefault(linear, {}):
            raise ValueError(
                f"expected one adapter, got several in {folder}, such as {[*adapters.values(), key][-2:]}: save one of "
                "them with peft's save_pretrained(..., selected_adapters=[NAME])"
            )
        factors[linear][match[2]] = value
        names[linear] = (match[1], inner)
    if not factors:
        raise ValueError(f"expected weights of lora_A and lora_B, got none in {folder}")
    for linear, pair in factors.items():
        if set(pair) != {"A", "B"}:
            raise ValueError(f"expected lora_A and lora_B of {linear}, got only lora_{next(iter(pair))} in {folder}")
    return factors, names


def rank_and_scale(config: LoraConfig, names: tuple[str, str], folder: Path) -> tuple[int, float]:
    """Return the rank R that peft gives to a linear, and the scale s of its update.

    Args:
        config: the adapter's configuration.
        names: names that the linear may have had in the model that peft adapted.
        folder: the adapter's folder, for messages.

    Raises:
        ValueError: the patterns are broken, or the names differ by the pattern that they match.
    """
    try:
        first, second = (_rank_and_scale(config, name) for name in names)
    except (TypeError, ValueError, AttributeError, ArithmeticError, re.error) as error:
        raise ValueError(f"expected rank and alpha of {names[0]} in {folder / CONFIG}, got: {error!r}") from error
    if first != second:
        raise ValueError(
            f"{folder / CONFIG}: rank_pattern or alpha_pattern matches only one of {names}, and the weights do not say "
            "which name peft saw: save the adapter from the model without torch's wrappers"
        )
    return first


def _rank_and_scale(config: LoraConfig, name: str) -> tuple[int, float]:
    """Look a linear up as ``peft.LoraModel`` does."""
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.lora_alpha)
    scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    if not math.isfinite(scale):
        raise ValueError(f"a scale of {scale}")
    return rank, scale


def find_missing(config: LoraConfig, names: Mapping[str, tuple[str, str]], linears: Iterable[str]) -> list[str]:
    """Return the linears of a model that an adapter's configuration targets, but for which its file has no weights.

    Args:
        config: the adapter's configuration.
        names: names in the model that peft adapted, by those in ``WhisperForConditionalGeneration``.
        linears: names in ``WhisperForConditionalGeneration``, without the output layer.
    """
    if config.target_modules is None:  # peft's own choice for the architecture, which it writes when it saves
        return []
    linear, (wrapped, inner) = next(iter(names.items()))
    added, wrappers = linear.removesuffix(inner), wrapped.removesuffix(inner) if wrapped.endswith(inner) else ""
    absent = [name for name in linears if name not in names]
    if config.target_modules == "all-linear":
        return absent
    return [name for name in absent if check_target_module_exists(config, wrappers + name.removeprefix(added))]


def _damaged(file: Path, error: object) -> ValueError:
    return ValueError(f"expected whole weights in {file}, got: {error}: copy or export them again")

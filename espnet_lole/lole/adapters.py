"""Experts on disk: one folder per language in the format of ``peft``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from espnet_lole import compat
from espnet_lole.atomic_io import atomic_folder
from espnet_lole.lole.experts import ExpertConfig, ExpertLinear, LoRAExperts
from espnet_lole.whisper.model import Whisper

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # peft's names of the modules of the model it wraps


def save_adapter(experts: LoRAExperts, lang: str, folder: Path, base_model: str) -> None:
    """Write a language's expert as a ``peft`` adapter; the folder appears whole or not at all.

    Args:
        experts: the experts.
        lang: the language.
        folder: the adapter's folder, replaced if it exists.
        base_model: the backbone's name or folder, for the configuration.

    Raises:
        ValueError: there is no expert for the language.
    """
    experts.index(lang)
    tensors = {}
    for name, layer in experts.layers.items():
        for key, factor in (("lora_A", layer.lora_A[lang]), ("lora_B", layer.lora_B[lang])):
            tensors[f"{_PREFIX}{name}.{key}.weight"] = factor.detach().cpu().contiguous()
    config = LoraConfig(
        r=experts.config.rank,
        lora_alpha=experts.config.alpha,
        lora_dropout=experts.config.dropout,
        target_modules=list(experts.config.targets),
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    with atomic_folder(folder) as made:
        save_file(tensors, made / WEIGHTS, metadata={"format": "pt", "pad_to": experts.whisper.pad_to})
        config.save_pretrained(made)


def trained_pad_to(folder: Path) -> str | None:
    """Return the padding of the input that an adapter was trained with, if it was trained here.

    Raises:
        FileNotFoundError: the adapter has no weights.
        ValueError: they are damaged.
    """
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise _damaged(folder, error) from error
    return compat.pad_to(metadata["window"]) if "window" in metadata else metadata.get("pad_to")


@dataclass(frozen=True)
class Adapter:
    """A ``peft`` adapter: its folder, its configuration, and A and B of each adapted linear."""

    folder: Path
    config: LoraConfig
    factors: dict[str, dict[str, Tensor]]

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Read a folder.

        Raises:
            FileNotFoundError: the folder has no adapter.
            ValueError: it is not a plain LoRA.
        """
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise FileNotFoundError(
                    f"expected a peft adapter with {CONFIG} and {WEIGHTS} in {folder}: {file} is not there"
                )
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # what peft raises for a broken file
            raise ValueError(f"expected a configuration of peft in {folder / CONFIG}, got: {error!r}") from error
        _check_plain_lora(config, folder)
        return cls(folder, config, _read_factors(folder))

    def rank(self, name: str) -> int:
        """Return the rank of a linear's update."""
        return self.factors[name]["A"].shape[0]

    def scale(self, name: str) -> float:
        """Return what a linear's update is multiplied by."""
        alpha = _pattern(self.config.alpha_pattern, name, self.config.lora_alpha)
        return alpha / (self.rank(name) ** 0.5 if self.config.use_rslora else self.rank(name))


def load_adapter(experts: LoRAExperts, lang: str, adapter: Adapter) -> None:
    """Copy an adapter into a language's expert.

    An adapter of a smaller rank or of fewer targets is filled up with zeros; its scale is folded into B.

    Raises:
        ValueError: the rank is above the experts', the weights do not fit the backbone, or a target has no expert.
    """
    layers = experts.layers
    if unknown := sorted(set(adapter.factors) - set(layers)):
        raise ValueError(
            f"expected an adapter of targets {list(experts.config.targets)}, got in {adapter.folder} weights for "
            f"{unknown[:4]} ({len(unknown)} in all): add their names to targets of expert_conf"
        )
    fitted = {name: _fit(layer, experts.config.rank, name, adapter) for name, layer in layers.items()}
    with torch.no_grad():
        for name, (a, b) in fitted.items():
            layers[name].lora_A[lang].copy_(a)
            layers[name].lora_B[lang].copy_(b)


def adapters_in(folder: Path) -> list[str]:
    """Return the names of the ``peft`` adapters in a folder, sorted."""
    return sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))


def load_adapters(whisper: Whisper, folder: Path, languages: Sequence[str] | None = None) -> LoRAExperts:
    """Put a folder of adapters, one subfolder per language, on a Whisper, as experts of the largest rank among them.

    Args:
        whisper: the backbone; frozen, with its linears replaced.
        folder: of the subfolders.
        languages: those to load, in the order of their index; default: all, sorted.

    Raises:
        FileNotFoundError: a language has no adapter, or there are none at all.
        ValueError: one is not a plain LoRA, or does not fit the backbone.
    """
    present = adapters_in(folder)
    languages = present if languages is None else languages
    if not languages or set(languages) - set(present):
        needed = " ".join(languages) or "some languages"
        raise FileNotFoundError(
            f"expected adapters of {needed} in {folder}, got {present}: train the experts first (stage 11)"
        )
    adapters = {lang: Adapter.read(folder / lang) for lang in languages}
    linears = [(adapter, name) for adapter in adapters.values() for name in adapter.factors]
    rank = max(adapter.rank(name) for adapter, name in linears)
    scale = next(adapter.scale(name) for adapter, name in linears)
    targets = tuple(dict.fromkeys(name.rpartition(".")[2] for _, name in linears))
    experts = LoRAExperts(whisper, languages, ExpertConfig(rank, alpha=scale * rank, targets=targets))
    for lang, adapter in adapters.items():
        load_adapter(experts, lang, adapter)
    return experts


def _check_plain_lora(config: PeftConfig, folder: Path) -> None:
    if not isinstance(config, LoraConfig):
        raise ValueError(f"expected a LoRA adapter, got {config.peft_type} in {folder}")
    extras = {
        "use_dora": config.use_dora,
        "modules_to_save": config.modules_to_save,
        "bias": config.bias != "none",
        "fan_in_fan_out": config.fan_in_fan_out,
        "trainable_token_indices": config.trainable_token_indices,
    }
    if used := [name for name, value in extras.items() if value]:
        raise ValueError(
            f"expected a plain LoRA adapter, got one with {used} in {folder}: merge it, or train it without"
        )


def _damaged(folder: Path, error: SafetensorError) -> ValueError:
    return ValueError(f"expected whole safetensors in {folder / WEIGHTS}, got: {error}: copy or export them again")


def _read_factors(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read A and B of each adapted linear, by the linear's name."""
    factors: dict[str, dict[str, Tensor]] = {}
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise _damaged(folder, error) from error
    for key, value in tensors.items():
        name, dot, rest = key.removeprefix(_PREFIX).partition(".lora_")
        if not dot or rest not in ("A.weight", "B.weight"):
            raise ValueError(f"expected weights of lora_A and lora_B, got {key!r} in {folder / WEIGHTS}")
        if value.dim() != 2 or not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(
                f"expected finite matrices, got {key} of {value.dtype}, shape {tuple(value.shape)}, "
                f"{int((~value.isfinite()).sum())} values not finite, in {folder / WEIGHTS}: train this expert again"
            )
        factors.setdefault(name, {})[rest[0]] = value
    for name, pair in factors.items():
        if set(pair) != {"A", "B"}:
            raise ValueError(f"expected lora_A and lora_B of {name}, got only {sorted(pair)} in {folder}")
    if not factors:
        raise ValueError(f"expected weights of lora_A and lora_B, got none in {folder / WEIGHTS}")
    return factors


def _fit(layer: ExpertLinear, largest: int, name: str, adapter: Adapter) -> tuple[Tensor, Tensor]:
    """Return A (R, D_in) and B (D_out, R) of one linear in the experts' rank R and scale."""
    pair, folder = adapter.factors.get(name), adapter.folder
    a, b = torch.zeros(largest, layer.base.in_features), torch.zeros(layer.base.out_features, largest)
    if pair is None:
        return a, b
    rank = adapter.rank(name)
    if rank > largest:
        raise ValueError(
            f"expected rank {largest} at most, got {rank} for {name} in {folder}: raise rank of expert_conf"
        )
    if (pair["A"].shape[1], *pair["B"].shape) != (a.shape[1], b.shape[0], rank):
        raise ValueError(
            f"expected {name} of {a.shape[1]} to {b.shape[0]}, got factors {tuple(pair['A'].shape)} and "
            f"{tuple(pair['B'].shape)} in {folder}: the adapter was made for another backbone"
        )
    a[:rank], b[:, :rank] = pair["A"], pair["B"].float() * (adapter.scale(name) / layer.scale)
    return a, b


def _pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    """Return the value of a module in peft's ``alpha_pattern``."""
    return next((value for key, value in patterns.items() if name == key or name.endswith(f".{key}")), default)

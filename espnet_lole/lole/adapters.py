"""Experts on disk: one folder a language in the format of ``peft``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from espnet_lole.atomic_io import whole_folder
from espnet_lole.lole.bank import ExpertBank, ExpertConfig

_PREFIX = "base_model.model."  # peft's names of the modules of the model it wraps
WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save_expert(bank: ExpertBank, lang: str, folder: Path, base_model: str) -> None:
    """Write a language's expert as a ``peft`` adapter; the folder appears whole or not at all.

    Args:
        bank: the experts.
        lang: the language.
        folder: the adapter's folder, replaced if it is there.
        base_model: the backbone's name or folder, kept in the configuration.

    Raises:
        ValueError: the bank has no expert for the language.
    """
    row = bank.index(lang)
    tensors = {}
    for name, layer in bank.layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A[row].detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B[row].detach().cpu().contiguous()
    config = LoraConfig(
        r=bank.config.rank,
        lora_alpha=bank.config.alpha,
        lora_dropout=bank.config.dropout,
        target_modules=list(bank.config.targets),
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    with whole_folder(folder) as made:
        save_file(tensors, made / WEIGHTS, metadata={"format": "pt"} | ({"window": bank.window} if bank.window else {}))
        config.save_pretrained(made)


def trained_window(folder: Path) -> str | None:
    """The window of the backbone that an adapter was trained on, if it was trained here.

    Raises:
        FileNotFoundError: the adapter has no weights.
        ValueError: they are damaged.
    """
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return (file.metadata() or {}).get("window")
    except SafetensorError as error:
        raise _damaged(folder, error) from error


@dataclass(frozen=True)
class Adapter:
    """A ``peft`` adapter as it lies in its folder: its configuration, and A and B of each adapted linear."""

    folder: Path
    config: LoraConfig
    factors: dict[str, dict[str, Tensor]]

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Read a folder.

        Raises:
            FileNotFoundError: the folder has no adapter.
            ValueError: not a plain LoRA.
        """
        for file in (_CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"expected a peft adapter with {_CONFIG} and {WEIGHTS} in {folder}: {file} is not there")
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # what peft raises for a broken file
            raise ValueError(f"expected a configuration of peft in {folder / _CONFIG}, got: {error!r}") from error
        _check_plain_lora(config, folder)
        return cls(folder, config, _read_factors(folder))

    def scale(self, name: str) -> float:
        """What a linear's update is multiplied by."""
        rank = self.factors[name]["A"].shape[0]
        alpha = _pattern(self.config.alpha_pattern, name, self.config.lora_alpha)
        return alpha / (rank**0.5 if self.config.use_rslora else rank)


def load_expert(bank: ExpertBank, lang: str, adapter: Adapter) -> None:
    """Copy an adapter into a language's place in the bank.

    An adapter of a smaller rank or of fewer targets fills the rest with zeros; its scale is folded into B.

    Raises:
        ValueError: a rank above the bank's, weights that do not fit the backbone, or a target that the bank lacks.
    """
    if unknown := sorted(set(adapter.factors) - set(bank.layers)):
        raise ValueError(
            f"expected an adapter of targets {list(bank.config.targets)}, got in {adapter.folder} weights for {unknown[:4]} "
            f"({len(unknown)} in all): add their names to targets of expert_conf"
        )
    row = bank.index(lang)
    rows = {name: _fit(bank, name, adapter) for name in bank.layers}
    with torch.no_grad():
        for name, (a, b) in rows.items():
            bank.layers[name].lora_A[row], bank.layers[name].lora_B[row] = a, b


def load_bank(model: nn.Module, folder: Path, languages: Sequence[str] | None = None) -> ExpertBank:
    """Put a folder of adapters, one subfolder a language, into a model, in a bank of the largest rank among them.

    Args:
        model: the Whisper of ``transformers``; frozen and changed in place.
        folder: of the subfolders.
        languages: those to load, in the order of their index; all by default, sorted.

    Raises:
        FileNotFoundError: a language has no adapter, or there are none at all.
        ValueError: one is not a plain LoRA, or does not fit the backbone.
    """
    found = sorted(file.parent.name for file in folder.glob(f"*/{_CONFIG}"))
    languages = found if languages is None else languages
    if not languages or set(languages) - set(found):
        wanted = " ".join(languages) or "some languages"
        raise FileNotFoundError(f"expected adapters of {wanted} in {folder}, got {found}: train the experts first (stage 11)")
    adapters = {lang: Adapter.read(folder / lang) for lang in languages}
    linears = [(adapter, name) for adapter in adapters.values() for name in adapter.factors]
    rank = max(adapter.factors[name]["A"].shape[0] for adapter, name in linears)
    scale = next(adapter.scale(name) for adapter, name in linears)
    targets = tuple(dict.fromkeys(name.rpartition(".")[2] for _, name in linears))
    bank = ExpertBank(model, languages, ExpertConfig(rank, alpha=scale * rank, targets=targets))
    for lang, adapter in adapters.items():
        load_expert(bank, lang, adapter)
    return bank


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
        raise ValueError(f"expected a plain LoRA adapter, got one with {used} in {folder}: merge it, or train it without")


def _damaged(folder: Path, error: SafetensorError) -> ValueError:
    return ValueError(f"expected whole safetensors in {folder / WEIGHTS}, got: {error}: copy or export them again")


def _read_factors(folder: Path) -> dict[str, dict[str, Tensor]]:
    """A and B of each adapted linear by the linear's name."""
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
    for name, found in factors.items():
        if set(found) != {"A", "B"}:
            raise ValueError(f"expected lora_A and lora_B of {name}, got only {sorted(found)} in {folder}")
    if not factors:
        raise ValueError(f"expected weights of lora_A and lora_B, got none in {folder / WEIGHTS}")
    return factors


def _fit(bank: ExpertBank, name: str, adapter: Adapter) -> tuple[Tensor, Tensor]:
    """A (R, in_dim) and B (out_dim, R) of one linear in the bank's rank and scale."""
    layer, found, folder = bank.layers[name], adapter.factors.get(name), adapter.folder
    a, b = torch.zeros_like(layer.lora_A[0]), torch.zeros_like(layer.lora_B[0])
    if found is None:
        return a, b
    rank = found["A"].shape[0]
    if rank > bank.config.rank:
        raise ValueError(
            f"expected rank {bank.config.rank} at most, got {rank} for {name} in {folder}: raise rank of expert_conf"
        )
    if (found["A"].shape[1], *found["B"].shape) != (a.shape[1], b.shape[0], rank):
        raise ValueError(
            f"expected {name} of {a.shape[1]} to {b.shape[0]}, got factors {tuple(found['A'].shape)} and "
            f"{tuple(found['B'].shape)} in {folder}: the adapter was made for another backbone"
        )
    a[:rank], b[:, :rank] = found["A"].to(a), found["B"].to(b) * (adapter.scale(name) / layer.scale)
    return a, b


def _pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    """The value of a module in peft's ``alpha_pattern``."""
    return next((value for key, value in patterns.items() if name == key or name.endswith(f".{key}")), default)

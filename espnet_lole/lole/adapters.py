"""Experts on disk: one folder per language in the format of ``peft``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from espnet_lole import compat
from espnet_lole.atomic_io import atomic_folder
from espnet_lole.lole.experts import ExpertConfig, ExpertLinear, LoRAExperts
from espnet_lole.lole.peft_files import (
    CONFIG,
    PICKLE,
    PREFIX,
    WEIGHTS,
    find_missing,
    group_factors,
    open_weights,
    rank_and_scale,
    read_config,
    read_tensors,
)
from espnet_lole.whisper.model import Whisper

FILES = (CONFIG, WEIGHTS, PICKLE, "README.md")
"""Files of an adapter of ``peft``, which may be replaced together."""
FOREIGN_PAD_TO = "30s"
"""Padding of the input in every training with ``transformers``' own features."""


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
            tensors[f"{PREFIX}{name}.{key}.weight"] = factor.detach().cpu().contiguous()
    config = LoraConfig(
        r=experts.config.rank,
        lora_alpha=experts.config.alpha,
        lora_dropout=experts.config.dropout,
        target_modules=list(experts.config.targets),
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    with atomic_folder(folder, known=FILES) as made:
        padding = {"pad_to": experts.whisper.pad_to, "share_30s": str(experts.whisper.share_30s)}
        save_file(tensors, made / WEIGHTS, metadata={"format": "pt"} | padding)
        config.save_pretrained(made)


def trained_pad_to(folder: Path) -> str:
    """Return the padding of the input that an adapter was trained with: as it notes, or 30 s.

    Adapters of ``peft`` note nothing; they are trained on the features of ``transformers``, which are padded to 30 s.

    Raises:
        FileNotFoundError: the adapter has no weights.
        ValueError: they are damaged.
    """
    metadata = _read_metadata(folder)
    return compat.pad_to(metadata["window"]) if "window" in metadata else metadata.get("pad_to", FOREIGN_PAD_TO)


def trained_share_30s(folder: Path) -> float:
    """Return the share of the training batches that were padded to 30 s whatever the padding.

    Raises:
        FileNotFoundError: the adapter has no weights.
        ValueError: they are damaged.
    """
    return float(_read_metadata(folder).get("share_30s", 0.0))


def _read_metadata(folder: Path) -> dict[str, str]:
    """Read what the weights note; those in a pickle note nothing."""
    if (folder / PICKLE).is_file() and not (folder / WEIGHTS).is_file():
        return {}
    with open_weights(folder) as file:
        return file.metadata() or {}


@dataclass(frozen=True)
class Adapter:
    """A ``peft`` adapter.

    Attributes:
        folder: its folder.
        config: its configuration.
        factors: ``A``, shape (R, D_in), and ``B``, shape (D_out, R), of each adapted linear.
        scales: what the update of each adapted linear is multiplied by.
        peft_names: names that each linear may have had in the model that ``peft`` adapted.
    """

    folder: Path
    config: LoraConfig
    factors: dict[str, dict[str, Tensor]]
    scales: dict[str, float]
    peft_names: dict[str, tuple[str, str]]

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Read a folder.

        Raises:
            FileNotFoundError: the folder has no adapter.
            ValueError: it is damaged, or not a plain LoRA of linears.
        """
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"expected a peft adapter with {CONFIG} in {folder}: {CONFIG} is not there")
        config = read_config(folder)
        tensors = {key: _check_matrix(key, value, folder) for key, value in read_tensors(folder).items()}
        factors, names = group_factors(tensors, folder)
        scales = {}
        for linear, pair in factors.items():
            rank, scales[linear] = rank_and_scale(config, names[linear], folder)
            if rank != pair["A"].shape[0]:
                raise ValueError(
                    f"expected rank {rank} of {linear} as {CONFIG} says, got {pair['A'].shape[0]} in the weights in "
                    f"{folder}: the two files are of different adapters"
                )
        return cls(folder, config, factors, scales, names)

    def rank(self, name: str) -> int:
        """Return the rank of a linear's update."""
        return self.factors[name]["A"].shape[0]


def load_adapter(experts: LoRAExperts, lang: str, adapter: Adapter) -> None:
    """Copy an adapter into a language's expert.

    An adapter of a smaller rank or of fewer targets is filled up with zeros; its scale is folded into B.

    Raises:
        ValueError: the rank is above the experts', the weights do not fit the backbone, or a target has no expert.
    """
    layers = experts.layers
    _check_linears(adapter, experts)
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
    return build_experts(whisper, {lang: Adapter.read(folder / lang) for lang in languages})


def build_experts(whisper: Whisper, adapters: Mapping[str, Adapter]) -> LoRAExperts:
    """Put adapters on a Whisper, as experts of the largest rank among them.

    Args:
        whisper: the backbone; frozen, with its linears replaced.
        adapters: by language, in the order of the experts' index.

    Raises:
        ValueError: an adapter does not fit the backbone.
    """
    linears = [(adapter, name) for adapter in adapters.values() for name in adapter.factors]
    rank = max(adapter.rank(name) for adapter, name in linears)
    scale = next((s for adapter, name in linears if (s := adapter.scales[name]) > 0), 1.0)
    targets = tuple(dict.fromkeys(name.rpartition(".")[2] for _, name in linears))
    experts = LoRAExperts(whisper, list(adapters), ExpertConfig(rank, alpha=scale * rank, targets=targets))
    for lang, adapter in adapters.items():
        load_adapter(experts, lang, adapter)
    return experts


def _check_matrix(key: str, value: Tensor, folder: Path) -> Tensor:
    """Return a factor in float32."""
    value = value.float() if value.is_floating_point() else value
    if value.dim() != 2 or not value.numel() or not value.is_floating_point() or not value.isfinite().all():
        raise ValueError(
            f"expected finite matrices, got {key} of {value.dtype}, shape {tuple(value.shape)}, "
            f"{int((~value.isfinite()).sum())} values not finite, in {folder}: train this expert again, on linears "
            "alone, and gather sharded weights before saving"
        )
    return value


def _check_linears(adapter: Adapter, experts: LoRAExperts) -> None:
    """Check that the adapter was made for linears of this backbone, for all of them that it targets."""
    model, folder = experts.whisper.model, adapter.folder
    modules = {name.removesuffix(".base"): m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    linears = [name for name, module in modules.items() if module is not model.get_output_embeddings()]
    if absent := sorted(set(adapter.factors) - set(linears)):
        raise ValueError(
            f"expected weights for linears of the backbone, got {absent[:4]} ({len(absent)} in all) in {folder}: the "
            "adapter was made for another backbone"
        )
    if unknown := sorted(set(adapter.factors) - set(experts.layers)):
        raise ValueError(
            f"expected an adapter of targets {list(experts.config.targets)}, got in {folder} weights for "
            f"{unknown[:4]} ({len(unknown)} in all): add their names to targets of expert_conf"
        )
    if missing := find_missing(adapter.config, adapter.peft_names, linears):
        raise ValueError(
            f"expected weights for every target of {folder / CONFIG}, got none for {missing[:4]} ({len(missing)} in "
            "all): the adapter was made for another backbone, or it is not whole"
        )


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
    a[:rank], b[:, :rank] = pair["A"], pair["B"] * (adapter.scales[name] / layer.scale)
    return a, b

"""LoRA language experts: one LoRA per language on every linear layer of a frozen Whisper."""

from __future__ import annotations

import copy
import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lole.lole import fast
from espnet_lole.whisper.model import Whisper

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Every attention projection and both feed-forward linears, of encoder and decoder."""


@dataclass(frozen=True)
class ExpertConfig:
    """Shape of the experts.

    Attributes:
        rank: rank R of the update.
        alpha: the update is scaled by s = ``alpha / rank``.
        dropout: probability of dropout on the experts' input.
        targets: names that the adapted linears end with, as in ``peft``'s ``target_modules``.
    """

    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.0
    targets: tuple[str, ...] = DEFAULT_TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"expected rank >= 1, alpha > 0 and dropout in [0, 1), got {self}")
        object.__setattr__(self, "targets", tuple(self.targets))


class Selection:
    """The expert of each utterance of a batch.

    Args:
        langs: language of each utterance.
    """

    def __init__(self, langs: Sequence[str]) -> None:
        self.langs = list(langs)
        self.runs = [(lang, len(list(utterances))) for lang, utterances in groupby(langs)]
        """(language, number of utterances) of consecutive utterances with one expert."""
        self.cache: dict[object, Any] = {}
        """What ``fast.py`` computes once for all layers and steps with this selection."""


@dataclass
class Active:
    """Tells all layers of a model which experts are selected; None selects the backbone alone."""

    selection: Selection | None = None


def expert_linear(layer: ExpertLinear, x: Tensor, selection: Selection) -> Tensor:
    """Compute ``y = W0 x + bias + s B_e A_e x`` with the expert ``e`` of each utterance.

    Args:
        layer: W0, bias, and A (R, D_in) and B (D_out, R) of each language.
        x: input, shape (B, T, D_in); that of the experts goes through dropout.
        selection: the expert of each utterance.

    Returns:
        Shape (B, T, D_out).
    """
    a, b, s = layer.lora_A, layer.lora_B, layer.scale
    runs = zip(selection.runs, layer.dropout(x).split([count for _, count in selection.runs]), strict=True)
    update = torch.cat([F.linear(s * F.linear(x_e, a[e]), b[e]) for (e, _), x_e in runs])
    return layer.base(x).add_(update)


class ExpertLinear(nn.Module):
    """A frozen linear with the LoRA experts of all languages.

    Args:
        name: of the linear in the model of ``transformers``.
        base: the linear, D_in to D_out.
        languages: a code for each expert.
        config: shape of the experts.
        active: shared by all layers.
    """

    def __init__(
        self, name: str, base: nn.Linear, languages: Sequence[str], config: ExpertConfig, active: Active
    ) -> None:
        super().__init__()
        self.name, self.base, self.active = name, base, active
        self.rank, self.scale = config.rank, config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        shape_a, shape_b = (config.rank, base.in_features), (base.out_features, config.rank)
        device = base.weight.device
        self.lora_A = nn.ParameterDict({lang: nn.Parameter(torch.empty(shape_a, device=device)) for lang in languages})
        self.lora_B = nn.ParameterDict({lang: nn.Parameter(torch.zeros(shape_b, device=device)) for lang in languages})

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Draw A (Kaiming uniform) and zero B; an expert's start depends on its language alone."""
        bound = 1 / math.sqrt(self.base.in_features)
        for lang, a in self.lora_A.items():
            if not a.is_meta:
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {lang} {self.name}".encode()))
                a.copy_(torch.rand(a.shape, generator=generator) * (2 * bound) - bound)
            self.lora_B[lang].zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D_in) to (B, T, D_out) by the backbone and the selected experts."""
        selection = self.active.selection
        if selection is None:
            return self.base(x)
        product = fast.choose(self, x, selection) or expert_linear
        return product(self, x, selection)

    def stack_factors(self) -> tuple[Tensor, Tensor]:
        """Stack all experts: A of shape (E, R, D_in) and B of shape (E, D_out, R)."""
        return torch.stack(list(self.lora_A.values())), torch.stack(list(self.lora_B.values()))

    @torch.no_grad()
    def merge(self, lang: str) -> nn.Linear:
        """Return a linear with ``W0 + s B A`` of a language, in the precision of ``W0``."""
        return merge_into(self.base, self.scale * self.lora_B[lang] @ self.lora_A[lang])


class LoRAExperts(nn.Module):
    """A Whisper with LoRA experts of several languages; it owns both.

    Args:
        whisper: frozen; its target linears are replaced by ``ExpertLinear``.
        languages: a code for each expert, in the order of their index.
        config: shape of the experts.
        seed: seed of the experts' random A.

    Raises:
        ValueError: no or repeated languages, or a target that no linear of the model ends with.
    """

    def __init__(self, whisper: Whisper, languages: Sequence[str], config: ExpertConfig, seed: int = 0) -> None:
        super().__init__()
        if not languages or len(set(languages)) < len(languages):
            raise ValueError(f"expected different languages, one for each expert, got {list(languages)}")
        self.whisper = whisper.requires_grad_(False)
        self.languages = tuple(languages)
        self.config = config
        self._active = Active()
        for name in find_targets(whisper.model, config.targets):
            layer = ExpertLinear(name, whisper.model.get_submodule(name), languages, config, self._active)
            layer.reset(seed)
            whisper.model.set_submodule(name, layer)

    @property
    def layers(self) -> dict[str, ExpertLinear]:
        """The linears with experts, by their name in the model of ``transformers``."""
        return {module.name: module for module in self.whisper.model.modules() if isinstance(module, ExpertLinear)}

    def index(self, lang: str) -> int:
        """Return the index of a language's expert.

        Raises:
            ValueError: there is none.
        """
        if lang not in self.languages:
            raise ValueError(f"there is no expert for {lang!r}; there are experts for {' '.join(self.languages)}")
        return self.languages.index(lang)

    def indices(self, langs: Sequence[str]) -> list[int]:
        """Return the index of each utterance's expert.

        Raises:
            ValueError: there is none for a language.
        """
        return [self.index(lang) for lang in langs]

    def activate(self, index: Tensor | Sequence[int] | None) -> AbstractContextManager[None]:
        """Return a context in which utterance ``i`` of a batch uses expert ``index[i]``; with None, the backbone alone.

        Args:
            index: expert of each utterance, shape (B,). Fewest products are computed if an expert's utterances lie
                together.
        """
        if index is None:
            return self._select(None)
        index = index.tolist() if isinstance(index, Tensor) else index
        return self._select(Selection([self.languages[i] for i in index]))

    @contextmanager
    def _select(self, selection: Selection | None) -> Iterator[None]:
        before, self._active.selection = self._active.selection, selection
        try:
            yield
        finally:
            self._active.selection = before

    def checkpoint_activations(self) -> None:
        """Compute layers again in the backward pass, through the same experts, instead of storing their activations."""
        self.whisper.recompute = lambda: self._select(self._active.selection)

    def parameters_of_experts(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of each language's expert."""
        layers = self.layers.values()
        return {
            lang: [p for layer in layers for p in (layer.lora_A[lang], layer.lora_B[lang])] for lang in self.languages
        }

    def cast_(self, dtype: torch.dtype) -> LoRAExperts:
        """Store the factors in the precision of the products, for decoding; training needs float32."""
        for layer in self.layers.values():
            layer.lora_A.to(dtype)
            layer.lora_B.to(dtype)
        return self

    def fingerprint(self) -> int:
        """Compute a 48-bit digest of every expert's language and factors; 0 on the meta device."""
        digest = hashlib.sha256(" ".join(self.languages).encode())
        for name, layer in self.layers.items():
            digest.update(name.encode())
            for factor in (*layer.lora_A.values(), *layer.lora_B.values()):
                if factor.is_meta:
                    return 0
                digest.update(factor.detach().cpu().numpy().tobytes())
        return int.from_bytes(digest.digest()[:6], "big")


def merge_into(base: nn.Linear, update: Tensor) -> nn.Linear:
    """Return a linear with ``W0 + update``, computed in float32, in the precision of ``W0``."""
    linear = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
    linear.weight = nn.Parameter((base.weight.float() + update.float()).to(base.weight.dtype), requires_grad=False)
    linear.bias = base.bias
    return linear


def share_weights(whisper: Whisper) -> Whisper:
    """Return a second Whisper with the same weight tensors, to put other experts on."""
    return copy.deepcopy(whisper, {id(tensor): tensor for tensor in (*whisper.parameters(), *whisper.buffers())})


def find_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the names of the linears of encoder and decoder that end with one of the targets, in the model's order.

    The output layer is none of them: it is the matrix of the token embeddings.

    Raises:
        ValueError: a target fits no linear; the message lists those that exist.
    """
    modules = ((name, module) for name, module in model.named_modules() if module is not model.get_output_embeddings())
    linears = [name for name, module in modules if isinstance(module, nn.Linear)]
    matches = {t: [n for n in linears if n == t or n.endswith(f".{t}")] for t in targets}
    if missing := [t for t, names in matches.items() if not names]:
        exist = sorted({n.rpartition(".")[2] for n in linears})
        raise ValueError(f"expected targets that name linears of the model, got {missing}: there are {exist}")
    chosen = {n for names in matches.values() for n in names}
    return [n for n in linears if n in chosen]

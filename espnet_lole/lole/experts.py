"""LoRA language experts: one LoRA per language on every linear layer of a frozen Whisper."""

from __future__ import annotations

import copy
import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

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
        rank: R.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: on the experts' input, in training.
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
        self._ends: dict[int, Tensor] = {}

    @cached_property
    def sorted(self) -> bool:
        """Whether the utterances of each expert lie together."""
        return len(self.runs) == len(set(self.langs))

    def ends(self, frames: int, device: torch.device) -> Tensor:
        """Return where the rows of each run end, shape (number of runs,), if an utterance has ``frames`` rows."""
        if frames not in self._ends:
            counts = torch.tensor([count * frames for _, count in self.runs], device=device)
            self._ends[frames] = counts.cumsum(0, dtype=torch.int32)
        return self._ends[frames]

    @cached_property
    def groups(self) -> fast.Groups:
        """The utterances of each expert in a group of its own."""
        return fast.Groups(self.langs)


@dataclass
class Active:
    """What the layers of a model share: the selection of the experts; None: the backbone alone."""

    selection: Selection | None = None


def expert_linear(
    x: Tensor,
    x_lora: Tensor,
    base: nn.Linear,
    a: nn.ParameterDict,
    b: nn.ParameterDict,
    selection: Selection,
    scale: float,
) -> Tensor:
    """Compute ``y = W0 x + bias + s B_e A_e x`` with the expert ``e`` of each utterance.

    Args:
        x: input, shape (B, T, D_in).
        x_lora: input of the experts: x after dropout.
        base: the frozen linear.
        a: A of each language, shape (R, D_in).
        b: B of each language, shape (D_out, R).
        selection: the expert of each utterance.
        scale: s.

    Returns:
        Shape (B, T, D_out).
    """
    parts = zip(selection.runs, x_lora.split([count for _, count in selection.runs]), strict=True)
    update = torch.cat([F.linear(scale * F.linear(part, a[lang]), b[lang]) for (lang, _), part in parts])
    return base(x).add_(update)


class ExpertLinear(nn.Module):
    """A frozen linear with the LoRA experts of all languages.

    Args:
        base: the linear, D_in to D_out.
        languages: a code for each expert.
        config: shape of the experts.
        active: shared by all layers.
    """

    def __init__(self, base: nn.Linear, languages: Sequence[str], config: ExpertConfig, active: Active) -> None:
        super().__init__()
        self.base = base
        self.active = active
        self.rank, self.scale = config.rank, config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        shape_a, shape_b = (config.rank, base.in_features), (base.out_features, config.rank)
        device = base.weight.device
        self.lora_A = nn.ParameterDict({lang: nn.Parameter(torch.empty(shape_a, device=device)) for lang in languages})
        self.lora_B = nn.ParameterDict({lang: nn.Parameter(torch.zeros(shape_b, device=device)) for lang in languages})

    @torch.no_grad()
    def reset(self, name: str, seed: int) -> None:
        """Draw A (Kaiming uniform) and zero B; an expert's start depends on its language alone."""
        bound = 1 / math.sqrt(self.base.in_features)
        for lang, a in self.lora_A.items():
            if not a.is_meta:
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {lang} {name}".encode()))
                a.copy_(torch.rand(a.shape, generator=generator) * (2 * bound) - bound)
            self.lora_B[lang].zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D_in) to (B, T, D_out) by the backbone and the selected experts."""
        selection = self.active.selection
        if selection is None:
            return self.base(x)
        product = fast.choose(x, self.base.weight, self.rank, selection) or expert_linear
        return product(x, self.dropout(x), self.base, self.lora_A, self.lora_B, selection, self.scale)

    @torch.no_grad()
    def merged(self, lang: str) -> nn.Linear:
        """Return a linear with ``W0 + s B A`` of a language, in the precision of ``W0``."""
        return merge_into(self.base, self.scale * self.lora_B[lang] @ self.lora_A[lang])


class LoRAExperts(nn.Module):
    """A Whisper with LoRA experts of several languages; it owns both.

    Args:
        whisper: frozen; its target linears are replaced by ``ExpertLinear``.
        languages: a code for each expert, in the order of their index.
        config: shape of the experts.
        seed: of the experts' random start.

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
            layer = ExpertLinear(whisper.model.get_submodule(name), languages, config, self._active)
            layer.reset(name, seed)
            whisper.model.set_submodule(name, layer)

    @property
    def layers(self) -> dict[str, ExpertLinear]:
        """The linears with experts, by their name in the model of ``transformers``."""
        modules = self.whisper.model.named_modules()
        return {name.removesuffix(".experts"): module for name, module in modules if isinstance(module, ExpertLinear)}

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

    @contextmanager
    def activate(self, index: Tensor | Sequence[int] | None) -> Iterator[None]:
        """Within the context, utterance ``i`` of a batch uses expert ``index[i]``; with None, the backbone alone.

        Args:
            index: expert of each utterance, shape (B,). Fewest products are computed if an expert's utterances lie
                together.
        """
        before = self._active.selection
        if index is None:
            self._active.selection = None
        else:
            experts = index.tolist() if isinstance(index, Tensor) else index
            self._active.selection = Selection([self.languages[i] for i in experts])
        try:
            yield
        finally:
            self._active.selection = before

    def checkpoint_activations(self) -> None:
        """Compute layers again in the backward pass instead of storing their activations."""
        self.whisper.recompute = self._same_selection

    def _same_selection(self) -> AbstractContextManager[None]:
        """Return a context, for later, in which the experts are selected that are selected now."""
        selection = self._active.selection
        return self.activate(None if selection is None else self.indices(selection.langs))

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

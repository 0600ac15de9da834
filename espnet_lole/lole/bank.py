"""The expert bank: LoRA language experts of all languages on one frozen Whisper."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet_lole.lole.experts import Chosen, ExpertLinear, Grouped, Route
from espnet_lole.lole.fast import product_dtype

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


class ExpertBank:
    """Puts experts into a model and routes batches through them.

    Args:
        model: the Whisper of ``transformers``; frozen and changed in place.
        languages: a code for each expert, in the order of their index.
        config: shape of the experts.
        seed: of the experts' random start.

    Raises:
        ValueError: no or repeated languages, or a target that no linear of the model ends with.
    """

    def __init__(self, model: nn.Module, languages: Sequence[str], config: ExpertConfig, seed: int = 0) -> None:
        if not languages or len(set(languages)) < len(languages):
            raise ValueError(f"expected different languages, one for each expert, got {list(languages)}")
        self.languages = tuple(languages)
        self.config = config
        self.window: str | None = getattr(model.config, "window", None)
        """That of the backbone, which the experts learn to expect."""
        self._route = Route()
        self.layers: dict[str, ExpertLinear] = {}
        model.requires_grad_(False)
        for name in find_targets(model, config.targets):
            parent, _, child = name.rpartition(".")
            scale = config.alpha / config.rank
            layer = ExpertLinear(model.get_submodule(name), self._route, len(languages), config.rank, scale, config.dropout)
            layer.reset(name, languages, seed)
            setattr(model.get_submodule(parent), child, layer)
            self.layers[name] = layer

    def index(self, lang: str) -> int:
        """The index of a language's expert.

        Raises:
            ValueError: the bank has none.
        """
        if lang not in self.languages:
            raise ValueError(
                f"expected a language with an expert, got {lang!r}: there are experts for {' '.join(self.languages)}"
            )
        return self.languages.index(lang)

    def indices(self, langs: Sequence[str]) -> list[int]:
        """The index of each utterance's expert.

        Raises:
            ValueError: the bank has none for a language.
        """
        return [self.index(lang) for lang in langs]

    def store_in(self, precision: torch.dtype) -> None:
        """Hold the factors in the precision of the backbone's products, which else casts them each time; not for training."""
        for layer in self.layers.values():
            layer.lora_A.data, layer.lora_B.data = layer.lora_A.to(precision), layer.lora_B.to(precision)

    def fingerprint(self) -> int:
        """A 48-bit digest of every expert's language and factors; 0 on the meta device, where there are none."""
        if any(layer.lora_A.is_meta for layer in self.layers.values()):
            return 0
        digest = hashlib.sha256(" ".join(self.languages).encode())
        for name, layer in self.layers.items():
            digest.update(name.encode() + layer.lora_A.detach().cpu().numpy().tobytes())
            digest.update(layer.lora_B.detach().cpu().numpy().tobytes())
        return int.from_bytes(digest.digest()[:6], "big")

    def routed(self, index: Tensor | None, weights: Tensor | None = None) -> AbstractContextManager[None]:
        """Within the context, utterance ``i`` of a batch goes through expert ``index[i]``; None: the backbone alone.

        Args:
            index: expert of each utterance, shape (B,), or the K experts of a mixture, shape (B, K).
            weights: of a mixture's experts, shape (B, K): the update is ``sum_k weights[i, k] B_k A_k``.
        """
        if index is None:
            return self._route.led(None)
        return self._route.led(self._cast_for(Chosen(index, weights)))

    def _cast_for(self, way: Chosen) -> Chosen:
        """The way, with factors that it multiplies in few calls cast together; what only decodes is cast already."""
        layer, *_ = self.layers.values()
        precision = product_dtype(layer.weight)
        if torch.is_grad_enabled() and precision != layer.lora_A.dtype:
            pairs = ((layer.lora_A, layer.lora_B) for layer in self.layers.values())
            way.cast([pair for pair in pairs if way.in_few_calls(precision, *pair)], layer.scale, precision)
        return way

    def routed_steps(self, index: Tensor) -> AbstractContextManager[None]:
        """As ``routed``, without a mixture; faster where each utterance has few frames, such as the steps of a search."""
        return self._route.led(Grouped(index))


def find_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the linears of encoder and decoder that end with one of the targets, in the model's order.

    The output layer is none of them: it is the matrix of the token embeddings.

    Raises:
        ValueError: a target fits no linear; the message lists those that exist.
    """
    modules = ((name, module) for name, module in model.named_modules() if module is not model.get_output_embeddings())
    linears = [name for name, module in modules if isinstance(module, nn.Linear | ExpertLinear)]
    found = {t: [n for n in linears if n == t or n.endswith(f".{t}")] for t in targets}
    if missing := [t for t, names in found.items() if not names]:
        exist = sorted({n.rpartition(".")[2] for n in linears} - {"base"})
        raise ValueError(f"expected targets that name linears of the model, got {missing}: there are {exist}")
    chosen = {n for names in found.values() for n in names}
    return [n for n in linears if n in chosen]

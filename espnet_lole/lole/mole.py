"""LoRA MoLE: shallow layers with merged experts, the language predicted from them (``route``), its expert above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lole.lole.experts import ExpertLinear, LoRAExperts, merge_into
from espnet_lole.lole.language_classifier import ClassifierConfig, LanguageClassifier
from espnet_lole.whisper.checkpoint import fingerprint
from espnet_lole.whisper.model import Encoded

NORMALIZE: dict[str, Callable[[Tensor], Tensor]] = {"softmax": lambda x: x.softmax(-1), "none": lambda x: x}


def merge_factors(weights: Tensor, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge A and B each (the paper's form): ``A^ = sum_i a_i A_i``, ``B^ = sum_i b_i B_i``.

    The update ``B^ A^`` has the rank of one expert and contains the cross terms ``b_i a_j B_i A_j``; with uniform
    weights it is ``mean(B) mean(A)``, smaller than the mean of the products.

    Args:
        weights: a and b, shape (2, E).
        lora_a: shape (E, R, D_in).
        lora_b: shape (E, D_out, R).

    Returns:
        A^ of shape (R, D_in) and B^ of shape (D_out, R).
    """
    a_weights, b_weights = weights
    return torch.einsum("e,erd->rd", a_weights, lora_a), torch.einsum("e,eor->or", b_weights, lora_b)


def merge_delta(weights: Tensor, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the updates (ours): ``B^ A^ = sum_i w_i B_i A_i`` has no cross terms, and rank up to E R.

    Args:
        weights: w, shape (1, E).
        lora_a: shape (E, R, D_in).
        lora_b: shape (E, D_out, R).

    Returns:
        ``A^ = [A_1; A_2; ...]`` of shape (E R, D_in) and ``B^ = [w_1 B_1, w_2 B_2, ...]`` of shape (D_out, E R).
    """
    return lora_a.flatten(0, 1), (weights[0, :, None, None] * lora_b).transpose(0, 1).flatten(1)


FORMS: dict[str, tuple[int, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    "factors": (2, merge_factors),
    "delta": (1, merge_delta),
}
"""Name of a form of the fusion -> number of weights of an expert in it, and the function that merges."""


@dataclass(frozen=True)
class FusionConfig:
    """How the experts of the shallow layers are merged.

    Attributes:
        shared_layers: L1: encoder layers ``1 .. L1`` are merged.
        form: ``factors`` merges A and B each, ``delta`` their products.
        normalize: ``softmax`` over the experts, or ``none``.
    """

    shared_layers: int
    form: str = "factors"
    normalize: str = "softmax"

    def __post_init__(self) -> None:
        for name, known in (("form", FORMS), ("normalize", NORMALIZE)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"expected {name} of fusion_conf to be one of {sorted(known)}, got {getattr(self, name)!r}"
                )


class FusedLinear(nn.Module):
    """A linear whose experts are merged by learnable weights: ``y = W0 x + bias + s B^ A^ x``.

    It is for utterances without an expert; while experts are active, each utterance goes through its own instead.

    Args:
        experts: the linear with its experts, frozen.
        config: the form of the fusion.
    """

    def __init__(self, experts: ExpertLinear, config: FusionConfig) -> None:
        super().__init__()
        self.experts = experts
        num_weights, self._merge = FORMS[config.form]
        self._normalize = NORMALIZE[config.normalize]
        num_experts = len(experts.lora_A)
        start = 0.0 if config.normalize == "softmax" else 1 / num_experts
        self.logits = nn.Parameter(torch.full((num_weights, num_experts), start, device=experts.base.weight.device))
        self.merged: nn.Linear | None = None

    @property
    def weights(self) -> Tensor:
        """The normalized weights of the experts, shape (2, E) for a and b, or (1, E)."""
        return self._normalize(self.logits)

    def merge_experts(self) -> tuple[Tensor, Tensor]:
        """Compute A^ of shape (R', D_in) and B^ of shape (D_out, R')."""
        return self._merge(self.weights, *self.experts.stack_factors())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D_in) to (B, T, D_out)."""
        if self.experts.active.selection is not None:
            return self.experts(x)
        if self.merged is not None:
            return self.merged(x)
        a, b = self.merge_experts()
        return self.experts.base(x) + self.experts.scale * F.linear(F.linear(x, a), b)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Return the linear with ``W0 + s B^ A^``, in the precision of ``W0``, which is used from now on."""
        a, b = self.merge_experts()
        self.merged = merge_into(self.experts.base, self.experts.scale * b @ a)
        return self.merged


class MoLEFrontend(nn.Module):
    """What an utterance passes before it has an expert: the shared shallow layers, and the language classifier on them.

    Args:
        experts: prepared experts; those of encoder layers ``1 .. L1`` are merged.
        fusion: how they are merged.
        classifier: shape of the language classifier.

    Raises:
        ValueError: L1 is not between 0 and the number of encoder layers.
    """

    def __init__(self, experts: LoRAExperts, fusion: FusionConfig, classifier: ClassifierConfig) -> None:
        super().__init__()
        self.whisper, self.shared_layers, self._activate = experts.whisper, fusion.shared_layers, experts.activate
        layers = self.whisper.encoder.layers
        if not 0 <= fusion.shared_layers <= len(layers):
            raise ValueError(
                f"expected shared_layers from 0 to the encoder's {len(layers)} layers, got {fusion.shared_layers}"
            )
        prefixes = tuple(f"model.encoder.layers.{i}." for i in range(fusion.shared_layers))
        for name, layer in experts.layers.items():
            if name.startswith(prefixes):
                self.whisper.model.set_submodule(name, FusedLinear(layer, fusion))
        self.classifier = LanguageClassifier(self.whisper.model.config.d_model, experts.languages, classifier)

    @property
    def fused(self) -> dict[str, FusedLinear]:
        """The merged linears, by their name in the model of ``transformers``."""
        modules = self.whisper.model.modules()
        return {module.experts.name: module for module in modules if isinstance(module, FusedLinear)}

    def forward(self, embedded: Encoded) -> tuple[Encoded, Tensor, Tensor]:
        """Run the shared layers and the classifier, in training as in decoding.

        Args:
            embedded: input of encoder layer 1, from ``Whisper.embed_speech``.

        Returns:
            The states after layer L1, the classifier's statistics of them (B, S), and language logits (B, L).
        """
        with self._activate(None):
            shallow = self.whisper.encode_layers(embedded, 0, self.shared_layers)
        return shallow, *self.classifier(shallow)


class MoLE(nn.Module):
    """LoRA MoLE: a frontend, and the experts of the deep encoder layers and of the decoder.

    Args:
        experts: prepared experts, which are frozen.
        fusion: how those of the shallow layers are merged.
        classifier: shape of the language classifier.
    """

    def __init__(self, experts: LoRAExperts, fusion: FusionConfig, classifier: ClassifierConfig) -> None:
        super().__init__()
        self.experts = experts.requires_grad_(False)
        self.fingerprints = {"backbone": fingerprint(experts.whisper), "experts": experts.fingerprint()}
        self.frontend = MoLEFrontend(experts, fusion, classifier)

    def encode_deep(self, shallow: Encoded) -> Encoded:
        """Run the deep layers on the states after layer L1, through the active experts."""
        return self.experts.whisper.finish(shallow, self.frontend.shared_layers)

    def encode_again(self, embedded: Encoded) -> Encoded:
        """Run all layers, the shared ones too, through the active experts (ours)."""
        return self.experts.whisper.finish(embedded)

    def merge(self, keep_experts: bool = False) -> MoLE:
        """Put the merged updates into the weights of the shallow layers, for decoding.

        Args:
            keep_experts: keep the experts of these layers in memory, for ``encode_again``.
        """
        for name, layer in self.frontend.fused.items():
            merged = layer.merge()
            if not keep_experts:
                self.experts.whisper.model.set_submodule(name, merged)
        return self


@dataclass(frozen=True)
class RoutingConfig:
    """How utterances are routed.

    Attributes:
        second_pass: encode again, from the first layer, through the whole expert of the language (ours); a given
            language needs no first pass then. False: the paper's single pass.
        candidates: an uncertain utterance is decoded in this many of its most likely languages, and the best
            hypothesis is chosen (after Kwok et al., 2025); 1 is the paper's argmax.
        threshold: an utterance is uncertain if its most likely language has a posterior below this.
        posterior_weight: the best hypothesis has the largest score + this times the log posterior of its language.
    """

    second_pass: bool = False
    candidates: int = 1
    threshold: float = 0.9
    posterior_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.posterior_weight < 0 or self.candidates < 1 or not 0 <= self.threshold <= 1:
            raise ValueError(f"expected posterior_weight >= 0, candidates >= 1 and threshold in [0, 1], got {self}")


@dataclass(frozen=True)
class RoutingDecision:
    """The hypotheses to decode, sorted by language; an utterance decoded in several languages has several.

    Attributes:
        rows: the utterance of each hypothesis, shape (N,).
        language: index of its language, the language token of the prompt and the expert, shape (N,).
    """

    rows: Tensor
    language: Tensor

    @classmethod
    def sort(cls, rows: Tensor, language: Tensor) -> RoutingDecision:
        """Sort hypotheses (N,) by language, so that each expert runs once for all of its own."""
        order = language.argsort(stable=True)
        return cls(rows[order], language[order])


def route_given(language: Tensor) -> RoutingDecision:
    """Route every utterance to the expert of its given language, shape (B,)."""
    return RoutingDecision.sort(torch.arange(len(language), device=language.device), language)


def route(posteriors: Tensor, config: RoutingConfig) -> RoutingDecision:
    """Route every utterance by its language posteriors (B, L) to its most likely language's expert, or to several."""
    ranked = posteriors.argsort(dim=1, descending=True)  # (B, L)
    rank = torch.arange(ranked.shape[1], device=ranked.device)
    best = (rank == 0).expand_as(ranked)  # the paper's argmax
    uncertain = posteriors.amax(1, keepdim=True) < config.threshold  # (B, 1)
    rows, rank = (best | (uncertain & (rank < config.candidates))).nonzero(as_tuple=True)
    return RoutingDecision.sort(rows, ranked[rows, rank])

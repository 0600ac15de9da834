"""LoRA MoLE: shallow layers whose experts are merged, the language predicted from them, its expert above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_lole import compat
from espnet_lole.lole.experts import ExpertLinear, LoRAExperts, merge_into
from espnet_lole.lole.language_classifier import ClassifierConfig, LanguageClassifier
from espnet_lole.whisper.checkpoint import fingerprint
from espnet_lole.whisper.model import Encoded

NORMALIZE: dict[str, Callable[[Tensor], Tensor]] = {"softmax": lambda x: x.softmax(-1), "none": lambda x: x}


def merge_factors(weights: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge A and B each (the paper's form): ``A^ = sum_i a_i A_i``, ``B^ = sum_i b_i B_i``.

    The update ``B^ A^`` has the rank of one expert and contains the cross terms ``b_i a_j B_i A_j``; with uniform
    weights it is ``mean(B) mean(A)``, smaller than the mean of the products.

    Args:
        weights: a and b, shape (2, E).
        a: shape (E, R, D_in).
        b: shape (E, D_out, R).

    Returns:
        Factors of shapes (R, D_in) and (D_out, R).
    """
    return torch.einsum("e,erd->rd", weights[0], a), torch.einsum("e,eor->or", weights[1], b)


def merge_products(weights: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the updates, ``sum_i w_i B_i A_i``: no cross terms, rank up to E R.

    Args:
        weights: shape (1, E).
        a: shape (E, R, D_in).
        b: shape (E, D_out, R).

    Returns:
        Factors of shapes (E R, D_in) and (D_out, E R).
    """
    return a.flatten(0, 1), (weights[0, :, None, None] * b).transpose(0, 1).flatten(1)


FORMS: dict[str, tuple[int, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    "factors": (2, merge_factors),
    "delta": (1, merge_products),
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
    """A linear whose experts are merged by learnable weights: ``h = W0 x + bias + s B^ A^ x`` for every utterance.

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

    def weights(self) -> Tensor:
        """Return the normalized weights of the experts, shape (2, E) for a and b, or (1, E)."""
        return self._normalize(self.logits)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Merge the experts: A^ of shape (R', D_in) and B^ of shape (D_out, R')."""
        a, b = (torch.stack(list(factor.values())) for factor in (self.experts.lora_A, self.experts.lora_B))
        return self._merge(self.weights(), a, b)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D_in) to (B, T, D_out)."""
        a, b = self.factors()
        return self.experts.base(x) + self.experts.scale * F.linear(F.linear(x, a), b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one linear with ``W0 + s B^ A^``, in the precision of ``W0``."""
        a, b = self.factors()
        return merge_into(self.experts.base, self.experts.scale * b @ a)


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
        self.whisper = experts.whisper
        layers = self.whisper.encoder.layers
        if not 0 <= fusion.shared_layers <= len(layers):
            raise ValueError(
                f"expected shared_layers from 0 to the encoder's {len(layers)} layers, got {fusion.shared_layers}"
            )
        self.shared_layers = fusion.shared_layers
        prefixes = tuple(f"model.encoder.layers.{i}." for i in range(fusion.shared_layers))
        for name, layer in experts.layers.items():
            if name.startswith(prefixes):
                self.whisper.model.set_submodule(name, FusedLinear(layer, fusion))
        self.classifier = LanguageClassifier(self.whisper.model.config.d_model, experts.languages, classifier)

    @property
    def fused(self) -> dict[str, FusedLinear]:
        """The merged linears, by their name in the model of ``transformers``."""
        modules = self.whisper.model.named_modules()
        return {name: module for name, module in modules if isinstance(module, FusedLinear)}

    def shallow(self, speech: Tensor, lengths: Tensor) -> Encoded:
        """Map samples at 16 kHz (B, S) of lengths (B,) to the states after layer L1."""
        return self.whisper.encode_layers(self.whisper.embed_speech(speech, lengths), 0, self.shared_layers)

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Encoded, Tensor]:
        """Return the states after layer L1 of samples at 16 kHz (B, S), lengths (B,), and language logits (B, E)."""
        encoded = self.shallow(speech, lengths)
        return encoded, self.classifier(encoded)


class MoLE(nn.Module):
    """LoRA MoLE: a frontend, and the experts of the deep encoder layers and of the decoder.

    Args:
        experts: prepared experts, which are frozen.
        fusion: how those of the shallow layers are merged.
        classifier: shape of the language classifier.

    Raises:
        ValueError: L1 is not between 0 and the number of encoder layers.
    """

    def __init__(self, experts: LoRAExperts, fusion: FusionConfig, classifier: ClassifierConfig) -> None:
        super().__init__()
        self.experts = experts.requires_grad_(False)
        self.fingerprints = {"backbone": fingerprint(experts.whisper), "experts": experts.fingerprint()}
        self.frontend = MoLEFrontend(experts, fusion, classifier)

    def deep(self, shallow: Encoded) -> Encoded:
        """Run the deep layers on the states after layer L1, through the active experts."""
        return self.experts.whisper.finish(shallow, self.frontend.shared_layers)

    def merge_and_unload(self) -> MoLE:
        """Put the merged updates into the weights of the shallow layers, for decoding."""
        for name, layer in self.frontend.fused.items():
            self.experts.whisper.model.set_submodule(name, layer.merged())
        return self

    def trained_state(self) -> dict[str, Tensor]:
        """Return what training changes: ``fusion.logits`` of all merged linears (G, P, E), and the classifier."""
        logits = [layer.logits.detach() for layer in self.frontend.fused.values()]
        fusion = {"fusion.logits": torch.stack(logits)} if logits else {}
        return fusion | {f"classifier.{name}": value for name, value in self.frontend.classifier.state_dict().items()}

    def save_trained(self, file: Path) -> None:
        """Write what training changes as safetensors, with the fingerprints of the backbone and the experts."""
        metadata = {name: str(value) for name, value in self.fingerprints.items()}
        save_file({name: value.contiguous() for name, value in self.trained_state().items()}, file, metadata)

    @torch.no_grad()
    def load_trained(self, state: dict[str, Tensor], where: object) -> None:
        """Take over what ``trained_state`` returned.

        Raises:
            ValueError: it has other names or shapes; ``where`` is named.
        """
        expected = {name: value.shape for name, value in self.trained_state().items()}
        actual = {name: value.shape for name, value in state.items()}
        if wrong := sorted(name for name in expected | actual if expected.get(name) != actual.get(name)):
            raise ValueError(
                f"{where} is no MoLE of the languages {' '.join(self.experts.languages)} in this shape: {wrong[0]} is "
                f"{actual.get(wrong[0])} instead of {expected.get(wrong[0])}"
            )
        for layer, logits in zip(self.frontend.fused.values(), state.get("fusion.logits", ()), strict=True):
            layer.logits.copy_(logits)
        classifier = {name: value for name, value in state.items() if name.startswith("classifier.")}
        self.frontend.classifier.load_state_dict({name.partition(".")[2]: value for name, value in classifier.items()})

    @torch.no_grad()
    def extend_from(self, state: dict[str, Tensor], languages: Sequence[str]) -> None:
        """Take over a MoLE of some of these languages; a new one starts with the mean of the others' fusion logits.

        Args:
            state: ``trained_state`` of the other, of the same fusion and classifier.
            languages: its languages.

        Raises:
            ValueError: it has a language that this one lacks, or parts of another shape.
        """
        mine = self.experts.languages
        if missing := sorted(set(languages) - set(mine)):
            raise ValueError(f"expected a MoLE of some of the languages {' '.join(mine)}, got one of {missing} too")
        rows = torch.tensor([mine.index(lang) for lang in languages])
        last = f"classifier.mlp.{len(self.frontend.classifier.mlp) - 1}"
        axes = {"fusion.logits": 2, f"{last}.weight": 0, f"{last}.bias": 0}
        extended = {}
        for name, value in self.trained_state().items():
            before = state.get(name, value.new_empty(0))
            if name in axes and before.dim() == value.dim():
                if name == "fusion.logits":
                    value = before.mean(2, keepdim=True).expand(*before.shape[:2], len(mine)).clone()
                before = value.clone().index_copy_(axes[name], rows, before)
            extended[name] = before
        self.load_trained(extended, "the MoLE to start from")


def read_trained(file: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Read what ``MoLE.save_trained`` wrote: the tensors, and the fingerprints of backbone and experts.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(file, "pt") as tensors:
            state = {compat.KEYS.get(key, key): tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
            metadata = tensors.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); copy or train it again") from error
    fingerprints = {}
    for name in ("backbone", "experts"):
        value = state.pop(f"{name}_fingerprint", metadata.get(name))  # older files have a tensor
        if value is not None:
            fingerprints[name] = int(value)
    return state, fingerprints


@dataclass(frozen=True)
class RoutingConfig:
    """How utterances of unknown language are routed.

    Attributes:
        candidates: an uncertain utterance is decoded in this many of its most likely languages, and the best
            hypothesis is chosen (after Kwok et al., 2025); 1 is the paper's argmax.
        threshold: an utterance is uncertain if its most likely language has a posterior below this.
        posterior_weight: the best hypothesis has the largest score + this times the log posterior of its language.
    """

    candidates: int = 1
    threshold: float = 0.9
    posterior_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.posterior_weight < 0 or self.candidates < 1 or not 0 <= self.threshold <= 1:
            raise ValueError(f"expected posterior_weight >= 0, candidates >= 1 and threshold in [0, 1], got {self}")


@dataclass(frozen=True)
class RoutingDecision:
    """The hypotheses to decode, those of one language together; an utterance decoded in several languages has several.

    Attributes:
        rows: the utterance of each hypothesis, shape (N,).
        language: index of its language, the language token of the prompt and the expert, shape (N,).
    """

    rows: Tensor
    language: Tensor


def route_given(language: Tensor) -> RoutingDecision:
    """Route every utterance to the expert of its given language, shape (B,)."""
    rows = language.argsort(stable=True)
    return RoutingDecision(rows, language[rows])


def route(posteriors: Tensor, config: RoutingConfig) -> RoutingDecision:
    """Route every utterance by its language posteriors (B, L) to its most likely language's expert, or to several."""
    top, order = posteriors.sort(dim=1, descending=True)  # (B, L)
    k = min(config.candidates, posteriors.shape[1])
    candidates = torch.where(top[:, :1] < config.threshold, k, 1)  # (B, 1)
    rows, rank = (torch.arange(k, device=top.device)[None] < candidates).nonzero(as_tuple=True)
    language = order[rows, rank]
    together = language.argsort(stable=True)
    return RoutingDecision(rows[together], language[together])

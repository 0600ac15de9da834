"""Systems that transcribe a batch: language experts, MoLE, and one model for all languages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet_lole.inference.search import Hypothesis, SearchConfig, beam_rows, search
from espnet_lole.lole.bank import ExpertBank
from espnet_lole.lole.cache import ExpertCache
from espnet_lole.lole.mole import MoLE
from espnet_lole.lole.routing import Plan, RoutingConfig, plan_found, plan_given
from espnet_lole.whisper.model import Backbone, Encoded
from espnet_lole.whisper.tokenizer import WhisperTokens


@dataclass(frozen=True)
class Transcription:
    """What was said, in which language, and the posterior of each language; None: the system has no opinion on it."""

    hypothesis: Hypothesis
    lang: str
    posteriors: dict[str, float] | None

    @property
    def confidence(self) -> float | None:
        """The posterior of the language."""
        return None if self.posteriors is None else self.posteriors[self.lang]


class Transcriber(Protocol):
    """A system, its backbone and the tokens of it."""

    backbone: Backbone
    tokens: WhisperTokens

    @property
    def num_parameters(self) -> int:
        """How many parameters it holds."""

    def __call__(self, speech: Sequence[Tensor], langs: Sequence[str] | None) -> list[Transcription]:
        """Transcribe a batch.

        Args:
            speech: samples at 16 kHz in [-1, 1], each of shape (S,).
            langs: language code of each utterance, or None: the system finds it.

        Returns:
            What was said in each utterance.

        Raises:
            ValueError: a language is unknown or has no expert, languages are needed, or an utterance is shorter than 25 ms or
                longer than 30 s.
        """


@dataclass(frozen=True)
class ExpertTranscriber:
    """Language experts, which must be told each utterance's language.

    Attributes:
        backbone: in evaluation mode.
        tokens: its tokens.
        bank: the experts in it, all in memory or read from disk when they are needed.
        search: how to search.
    """

    backbone: Backbone
    tokens: WhisperTokens
    bank: ExpertBank | ExpertCache
    search: SearchConfig

    @property
    def num_parameters(self) -> int:
        """Those of the backbone and its adapters."""
        return count_parameters(self.backbone)

    @torch.no_grad()
    def __call__(self, speech: Sequence[Tensor], langs: Sequence[str] | None) -> list[Transcription]:
        """Transcribe a batch; see ``Transcriber``."""
        if langs is None:
            raise ValueError("expected the language of each utterance, got none: experts alone do not find it, MoLE does")
        experts = self.bank.indices(langs)
        order = sorted(range(len(experts)), key=experts.__getitem__)  # those of an expert together: fewer, larger products
        padded, lengths = pad_speech([speech[i] for i in order], self.backbone)
        prompts = [self.tokens.prompt(langs[i], self.search.timestamps) for i in order]
        expert = torch.tensor([experts[i] for i in order], device=padded.device)
        with self.bank.routed(expert):
            encoded = self.backbone.encode(padded, lengths)
        with self.bank.routed_steps(beam_rows(expert, self.search.beam_size)):
            hypotheses = search(self.backbone, encoded, torch.tensor(prompts, device=padded.device), self.tokens, self.search)
        found = dict(zip(order, hypotheses, strict=True))
        return [Transcription(found[i], lang, None) for i, lang in enumerate(langs)]


@dataclass(frozen=True)
class PromptTranscriber:
    """A backbone with one adapter for all languages, or as it is, which finds the language by Whisper's language token.

    Attributes:
        backbone: in evaluation mode.
        tokens: its tokens.
        bank: the adapter in it; None for the backbone as it is.
        languages: codes of the languages that can be found.
        search: how to search.
    """

    backbone: Backbone
    tokens: WhisperTokens
    bank: ExpertBank | None
    languages: Sequence[str]
    search: SearchConfig

    @property
    def num_parameters(self) -> int:
        """Those of the backbone and its adapters."""
        return count_parameters(self.backbone)

    @torch.no_grad()
    def __call__(self, speech: Sequence[Tensor], langs: Sequence[str] | None) -> list[Transcription]:
        """Transcribe a batch; see ``Transcriber``."""
        padded, lengths = pad_speech(speech, self.backbone)
        adapter = torch.zeros_like(lengths)  # (B,): the only one
        with nullcontext() if self.bank is None else self.bank.routed(adapter):
            encoded = self.backbone.encode(padded, lengths)
            posteriors: list[dict[str, float] | None] = [None] * len(speech)
            if langs is None:
                posteriors = name_posteriors(self.languages, self._language_posteriors(encoded))
                langs = [max(row, key=row.get) for row in posteriors]
            prompts = torch.tensor([self.tokens.prompt(lang, self.search.timestamps) for lang in langs], device=padded.device)
            hypotheses = search(self.backbone, encoded, prompts, self.tokens, self.search)
        return [Transcription(h, lang, p) for h, lang, p in zip(hypotheses, langs, posteriors, strict=True)]

    def _language_posteriors(self, encoded: Encoded) -> Tensor:
        """Probabilities of the languages' tokens after the start token, shape (B, L)."""
        if not self.languages:
            raise ValueError("expected the languages that can be found, got none: give --langs")
        start = torch.full((len(encoded.states), 1), self.tokens.start, device=encoded.states.device)
        scores = self.backbone.logits(self.backbone.decode(start, encoded)[:, 0]).float()  # (B, V)
        ids = [self.tokens.language(lang) for lang in self.languages]
        return scores[:, ids].softmax(-1)


class MoLETranscriber:
    """MoLE: one pass of the shallow layers finds the languages and is the input of the deep ones.

    Args:
        mole: the system; its shallow layers are merged into the weights.
        tokens: the backbone's tokens.
        search: how to search.
        routing: how utterances of unknown language are routed.
    """

    def __init__(self, mole: MoLE, tokens: WhisperTokens, search: SearchConfig, routing: RoutingConfig) -> None:
        mole.merge()
        self.mole, self.backbone, self.tokens, self.search, self.routing = mole, mole.backbone, tokens, search, routing

    @property
    def num_parameters(self) -> int:
        """Those of the backbone with its merged layers, of the deep layers' experts and of the classifier."""
        return count_parameters(self.backbone, self.mole.classifier)

    @torch.no_grad()
    def __call__(self, speech: Sequence[Tensor], langs: Sequence[str] | None) -> list[Transcription]:
        """Transcribe a batch; see ``Transcriber``."""
        bank = self.mole.bank
        shallow = self.mole.shallow(*pad_speech(speech, self.backbone))
        posteriors = self.mole.classifier(shallow).softmax(-1)  # (B, E)
        if langs is None:
            plan = plan_found(posteriors, self.routing)
        else:
            plan = plan_given(torch.tensor([bank.index(lang) for lang in langs], device=posteriors.device))
        hypotheses = self._decode(shallow, plan)
        log_posteriors = posteriors[plan.rows, plan.language].clamp(min=1e-30).log().cpu()  # (N,)
        joint = torch.tensor([h.score for h in hypotheses]) + self.routing.posterior_weight * log_posteriors
        ranks = [(not h.looped, value) for h, value in zip(hypotheses, joint.tolist(), strict=True)]
        best: dict[int, int] = {}
        for i, row in enumerate(plan.rows.tolist()):
            if row not in best or ranks[i] > ranks[best[row]]:
                best[row] = i
        languages = [bank.languages[i] for i in plan.language.tolist()]
        named = name_posteriors(bank.languages, posteriors)
        return [Transcription(hypotheses[i], languages[i], named[row]) for row, i in sorted(best.items())]

    def _decode(self, shallow: Encoded, plan: Plan) -> list[Hypothesis]:
        """One pass of the deep layers and one search for all rows of the plan."""
        bank, backbone, k = self.mole.bank, self.backbone, self.search.beam_size
        chosen = Encoded(shallow.states[plan.rows], None if shallow.mask is None else shallow.mask[plan.rows])
        prompts = torch.tensor(
            [self.tokens.prompt(lang, self.search.timestamps) for lang in bank.languages], device=plan.rows.device
        )[plan.language]
        with bank.routed(plan.experts, plan.weights):
            encoded = self.mole.deep(chosen)
        experts = beam_rows(plan.experts, k)
        mixture = plan.weights is not None
        with bank.routed(experts, beam_rows(plan.weights, k)) if mixture else bank.routed_steps(experts):
            return search(backbone, encoded, prompts, self.tokens, self.search)


def name_posteriors(languages: Sequence[str], posteriors: Tensor) -> list[dict[str, float]]:
    """The posteriors of each utterance, shape (B, L), by language."""
    return [dict(zip(languages, row, strict=True)) for row in posteriors.tolist()]


def count_parameters(*modules: nn.Module) -> int:
    """How many parameters modules have, shared ones once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def pad_speech(speech: Sequence[Tensor], backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Utterances of shape (S,) as a batch on the backbone's device: samples (B, S), lengths (B,)."""
    device = backbone.features.window.device
    lengths = torch.tensor([len(s) for s in speech], device=device)
    return pad_sequence(list(speech), batch_first=True).to(device), lengths

"""Systems that transcribe a batch: language experts, MoLE, and one model for all languages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from espnet_lole.inference.expert_cache import ExpertCache
from espnet_lole.inference.results import Hypothesis
from espnet_lole.inference.search import SearchConfig, beam_rows, search
from espnet_lole.lole.experts import LoRAExperts
from espnet_lole.lole.mole import MoLE, RoutingConfig, RoutingDecision, route, route_given
from espnet_lole.whisper.features import MAX_SAMPLES
from espnet_lole.whisper.model import Encoded, Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer


class Transcriber(Protocol):
    """A system, with its Whisper, its tokenizer and the options of its search."""

    whisper: Whisper
    tokenizer: WhisperTokenizer
    search: SearchConfig

    @property
    def num_parameters(self) -> int:
        """Number of parameters in memory."""

    def __call__(self, speech: Tensor, lengths: Tensor, languages: Sequence[str] | None) -> list[Hypothesis]:
        """Transcribe a batch.

        Args:
            speech: samples at 16 kHz in [-1, 1], shape (B, S).
            lengths: samples of each utterance, shape (B,).
            languages: code of each utterance's language, or None: the system finds it.

        Returns:
            B hypotheses.

        Raises:
            ValueError: a language is unknown or has no expert, languages are needed, or an utterance is shorter than
                25 ms or longer than 30 s.
        """


@dataclass(frozen=True)
class ExpertTranscriber:
    """Language experts; the Whisper below them finds the language by its language token, where it is not given.

    Attributes:
        experts: all in memory, or read from disk when they are needed; in evaluation mode.
        tokenizer: of the Whisper.
        search: options of the search.
        fill: how the Whisper's input is padded to 30 s to find the language; None: as the experts' input.
    """

    experts: LoRAExperts | ExpertCache
    tokenizer: WhisperTokenizer
    search: SearchConfig
    fill: str | None = None

    @property
    def whisper(self) -> Whisper:
        """The Whisper that the experts adapt."""
        return self.experts.whisper

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the backbone and its experts."""
        return count_parameters(self.whisper)

    @torch.no_grad()
    def __call__(self, speech: Tensor, lengths: Tensor, languages: Sequence[str] | None) -> list[Hypothesis]:
        """See ``Transcriber``."""
        posteriors: list[dict[str, float] | None] = [None] * len(speech)
        if languages is None:
            posteriors = self._identify(speech, lengths)
            languages = [max(row, key=row.get) for row in posteriors]
        decision = route_given(torch.tensor(self.experts.indices(languages), device=speech.device))
        rows, index = decision.rows, decision.language
        with self.experts.activate(index):
            encoded = self.whisper.encode(speech[rows], lengths[rows])
        with self.experts.activate(beam_rows(index, self.search.beam_size)):
            hypotheses = search_with_prompts(self, encoded, [languages[row] for row in rows.tolist()])
        by_row = dict(zip(rows.tolist(), hypotheses, strict=True))
        return [replace(by_row[row], posteriors=posteriors[row]) for row in range(len(speech))]

    def _identify(self, speech: Tensor, lengths: Tensor) -> list[dict[str, float]]:
        """Compute the posteriors of the experts' languages by the Whisper alone.

        Utterances that are padded to 30 s are encoded in parts, which are no longer than the batch without it.
        """
        rows = max(1, speech.numel() // MAX_SAMPLES) if self.fill else len(speech)
        posteriors = []
        with self.experts.activate(None):
            for part, part_lengths in zip(speech.split(rows), lengths.split(rows), strict=True):
                encoded = self.whisper.finish(self.whisper.embed_speech(part, part_lengths, self.fill))
                posteriors += language_posteriors(self, encoded, self.experts.languages)
        return posteriors


@dataclass(frozen=True)
class PromptTranscriber:
    """A Whisper with one adapter for all languages, or without any; it finds the language by Whisper's language token.

    Attributes:
        whisper: in evaluation mode.
        tokenizer: of the Whisper.
        adapter: the only adapter; None: the Whisper alone.
        languages: codes of the languages to choose from.
        search: options of the search.
    """

    whisper: Whisper
    tokenizer: WhisperTokenizer
    adapter: LoRAExperts | None
    languages: Sequence[str]
    search: SearchConfig

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the Whisper and its adapter."""
        return count_parameters(self.whisper)

    @torch.no_grad()
    def __call__(self, speech: Tensor, lengths: Tensor, languages: Sequence[str] | None) -> list[Hypothesis]:
        """See ``Transcriber``."""
        posteriors: list[dict[str, float] | None] = [None] * len(speech)
        with self._adapted(len(speech)):
            encoded = self.whisper.encode(speech, lengths)
            if languages is None:
                posteriors = language_posteriors(self, encoded, self.languages)
                languages = [max(row, key=row.get) for row in posteriors]
        with self._adapted(len(speech) * self.search.beam_size):
            hypotheses = search_with_prompts(self, encoded, languages)
        return [replace(h, posteriors=row) for h, row in zip(hypotheses, posteriors, strict=True)]

    def _adapted(self, rows: int) -> AbstractContextManager[None]:
        """Activate the adapter for a batch of so many rows."""
        return nullcontext() if self.adapter is None else self.adapter.activate([0] * rows)


class MoLETranscriber:
    """MoLE: the shallow layers find the languages, and are the input of the deep layers unless these get a second pass.

    Args:
        mole: the system, in evaluation mode; the fusion of its shallow layers is merged into their weights.
        tokenizer: of its Whisper.
        search: options of the search.
        routing: how utterances are routed.
        languages: codes of the languages to choose from; None: all of them.
    """

    def __init__(
        self,
        mole: MoLE,
        tokenizer: WhisperTokenizer,
        search: SearchConfig,
        routing: RoutingConfig,
        languages: Sequence[str] | None = None,
    ) -> None:
        mole.merge(keep_experts=routing.second_pass)
        self.mole, self.tokenizer, self.search, self.routing = mole, tokenizer, search, routing
        self.experts, self.whisper = mole.experts, mole.experts.whisper
        self.languages = tuple(languages or self.experts.languages)

    @property
    def num_parameters(self) -> int:
        """Number of parameters: Whisper with merged shallow layers, experts of the deep layers, classifier."""
        return count_parameters(self.mole)

    @torch.no_grad()
    def __call__(self, speech: Tensor, lengths: Tensor, languages: Sequence[str] | None) -> list[Hypothesis]:
        """See ``Transcriber``."""
        if self.routing.second_pass and languages is not None:
            return ExpertTranscriber(self.experts, self.tokenizer, self.search)(speech, lengths, languages)
        embedded = self.whisper.embed_speech(speech, lengths)
        shallow, _, logits = self.mole.frontend(embedded)
        choices = self.languages if languages is None else self.experts.languages
        experts = torch.tensor(self.experts.indices(choices), device=speech.device)  # (C,)
        posteriors = logits[:, experts].softmax(-1)  # (B, C)
        if languages is None:
            decision = route(posteriors, self.routing)
        else:
            decision = route_given(torch.tensor(self.experts.indices(languages), device=speech.device))
        encoded = embedded if self.routing.second_pass else shallow
        hypotheses = self._decode(encoded, replace(decision, language=experts[decision.language]))
        log_posteriors = posteriors[decision.rows, decision.language].clamp(min=1e-30).log().tolist()
        best: dict[int, tuple[tuple[bool, float], Hypothesis]] = {}
        for row, hypothesis, log_posterior in zip(decision.rows.tolist(), hypotheses, log_posteriors, strict=True):
            rank = not hypothesis.looped, hypothesis.score + self.routing.posterior_weight * log_posterior
            if row not in best or rank > best[row][0]:
                best[row] = rank, hypothesis
        named = name_posteriors(choices, posteriors)
        return [replace(best[row][1], posteriors=named[row]) for row in range(len(speech))]

    def _decode(self, encoded: Encoded, decision: RoutingDecision) -> list[Hypothesis]:
        """Run the encoder from these states on, and the search, once for all N rows of the decision."""
        index, encode = decision.language, self.mole.encode_again if self.routing.second_pass else self.mole.encode_deep
        with self.experts.activate(index):
            encoded = encode(encoded.select(decision.rows))
        with self.experts.activate(beam_rows(index, self.search.beam_size)):
            return search_with_prompts(self, encoded, [self.experts.languages[i] for i in index.tolist()])


def search_with_prompts(system: Transcriber, encoded: Encoded, languages: Sequence[str]) -> list[Hypothesis]:
    """Search the hypothesis of each utterance after the prompt of its language."""
    prompts = [system.tokenizer.prompt(lang, system.search.timestamps) for lang in languages]
    prompts = torch.tensor(prompts, device=encoded.states.device)  # (B, P)
    hypotheses = search(system.whisper, encoded, prompts, system.tokenizer, system.search)
    return [replace(h, language=lang) for h, lang in zip(hypotheses, languages, strict=True)]


def language_posteriors(system: Transcriber, encoded: Encoded, languages: Sequence[str]) -> list[dict[str, float]]:
    """Compute the probability of each language's token after the start token, for each of B utterances.

    Raises:
        ValueError: there are no languages to choose from.
    """
    if not languages:
        raise ValueError("expected languages to choose from, got none: give --langs")
    sot = torch.full((len(encoded.states), 1), system.tokenizer.sot, device=encoded.states.device)
    logits = system.whisper.logits(system.whisper.decode(sot, encoded)[:, 0]).float()  # (B, V)
    return name_posteriors(languages, logits[:, [system.tokenizer.language(lang) for lang in languages]].softmax(-1))


def name_posteriors(languages: Sequence[str], posteriors: Tensor) -> list[dict[str, float]]:
    """Map languages to the posteriors (B, L) of each utterance."""
    return [dict(zip(languages, row, strict=True)) for row in posteriors.tolist()]


def count_parameters(module: nn.Module) -> int:
    """Count the parameters of a module, shared ones once."""
    return sum(p.numel() for p in module.parameters())

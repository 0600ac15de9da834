"""Decoding batches of many languages: a step, the encoder, and whole utterances."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Outcome, Size, Work
from benchmarks.peers import espnet_search, faster_whisper, peft_adapters, peft_generate
from benchmarks.systems import (
    LANGS,
    TOKENIZER,
    as_whisper,
    batch_langs,
    decoding_experts,
    make_experts,
    merged,
    stock,
    utterances,
)
from espnet_lole.inference.kv_cache import ReplayedSteps
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import ExpertTranscriber, PromptTranscriber
from espnet_lole.lole.language_classifier import ClassifierConfig
from espnet_lole.lole.mole import FusionConfig, MoLE
from espnet_lole.whisper.model import Encoded, Whisper

STEPS = 8
"""Tokens decoded one by one in a round of ``decode_step``."""
Contender = tuple[Whisper, Callable[[], AbstractContextManager]]
"""A Whisper, and the context in which it runs a batch."""


def contenders(size: Size) -> dict[str, Contender]:
    """Return what runs a batch of many languages with the same layers, so that only the adapters differ."""
    langs = batch_langs(size.decode_batch)
    experts, single, peft = decoding_experts(size), decoding_experts(size, 1), peft_adapters(size)
    return {
        "experts": (experts.whisper, partial(experts.activate, experts.indices(langs))),
        "merged weights": (as_whisper(merged(size), size), nullcontext),
        "one unmerged adapter": (single.whisper, partial(single.activate, [0] * len(langs))),
        "peft adapter_names": (
            as_whisper(peft.get_base_model(), size),
            partial(peft.base_model._enable_peft_forward_hooks, adapter_names=langs),
        ),
    }


@torch.no_grad()
def decode_steps(
    whisper: Whisper, activate: Callable[[], AbstractContextManager], encoded: Encoded, token: Tensor
) -> None:
    """Run cached steps of the decoder, one token (B, 1) each."""
    with activate():
        cache = whisper.new_cache()
        for _ in range(STEPS):
            whisper.logits(whisper.decode(token, encoded, cache))


@torch.no_grad()
def replayed_steps(
    whisper: Whisper, activate: Callable[[], AbstractContextManager], encoded: Encoded, token: Tensor
) -> Work:
    """Capture a step on a GPU, and return what replays it as a search does."""
    longest = whisper.model.config.max_target_positions
    steps = ReplayedSteps(whisper, encoded, longest, longest)
    with activate():
        steps.prefill(token)
        steps.step(token, None)
        steps.step(token, None)

    @torch.no_grad()
    def work() -> None:
        for _ in range(STEPS):
            steps.step(token, None)

    return work


def decode_step(size: Size) -> Outcome:
    """Measure cached steps of the decoder, one token for each utterance; on a GPU replayed, as a search does."""
    speech = utterances(size, size.decode_batch)
    token = torch.full((size.decode_batch, 1), TOKENIZER.sot, device=size.device)
    works = {}
    for name, (whisper, activate) in contenders(size).items():
        with torch.no_grad():
            encoded = whisper.encode(*speech)
        eager = partial(decode_steps, whisper, activate, encoded, token)
        if size.device == "cpu" or name == "peft adapter_names":  # peft copies indices to the GPU in each step
            works[name] = eager
        else:
            works[name] = replayed_steps(whisper, activate, encoded, token)
            works |= {"experts, not replayed": eager} if name == "experts" else {}
    return _compare_experts("decode_step", works, size)


def encode(size: Size) -> Outcome:
    """Measure the encoder."""
    speech = utterances(size, size.decode_batch)

    @torch.no_grad()
    def work(whisper: Whisper, activate: Callable[[], AbstractContextManager]) -> None:
        with activate():
            whisper.encode(*speech)

    return _compare_experts("encode", {name: partial(work, *parts) for name, parts in contenders(size).items()}, size)


def _compare_experts(benchmark: str, works: dict[str, Work], size: Size) -> Outcome:
    out = Outcome()
    out.race(benchmark, works, size.repeats)
    out.compare(benchmark, "experts", *(name for name in works if name != "experts"))
    return out


def search_config(size: Size) -> SearchConfig:
    """Return a search of ``size.tokens`` tokens for every utterance."""
    return SearchConfig(size.beam, maxlenratio=(size.tokens + 0.5) / (50 * size.seconds))


def expert_search(size: Size, count: int) -> Callable[[], list[list[int]]]:
    """Decode a batch of all languages with experts."""
    speech, lengths = utterances(size, count)
    transcriber = ExpertTranscriber(decoding_experts(size), TOKENIZER, search_config(size))
    return lambda: [hypothesis.tokens for hypothesis in transcriber(speech, lengths, batch_langs(count))]


def whole_decode(size: Size) -> Outcome:
    """Measure whole utterances of many languages, from samples to tokens, at equal beam."""
    out, count = Outcome(), size.decode_batch
    speech, _ = utterances(size, count)
    ours, espnet = expert_search(size, count), espnet_search(size, speech)
    works = {"experts": ours, "peft generate": peft_generate(size, speech), "ESPnet beam search": espnet}
    out.race("whole_decode", works, max(2, size.repeats // 2))
    out.compare("whole_decode", "experts", "peft generate", "ESPnet beam search")
    same = [a == b for a, b in zip(ours(), espnet(), strict=True)]
    out.add("whole_decode texts that differ", "experts and ESPnet", "%", [100 * (1 - sum(same) / len(same))])
    return out


def merged_student(size: Size) -> Outcome:
    """Measure the search of a merged student against its export to faster-whisper, on a CPU."""
    out, langs = Outcome(), batch_langs(size.decode_batch)
    speech, lengths = utterances(size, size.decode_batch)
    student = PromptTranscriber(as_whisper(merged(size), size), TOKENIZER, None, LANGS, search_config(size))
    with tempfile.TemporaryDirectory() as folder:
        exported = faster_whisper(size, speech, Path(folder))
        works = {"merged student": lambda: student(speech, lengths, langs), "faster-whisper": exported}
        out.race("merged_student", works, size.repeats)
    out.compare("merged_student", *works)
    return out


def mole(size: Size) -> Outcome:
    """Measure the shallow layers and the classifier of MoLE against the same layers of the backbone."""
    speech, lengths = utterances(size, size.decode_batch)
    system = MoLE(make_experts(size), FusionConfig(max(1, size.layers // 2)), ClassifierConfig())
    system.to(size.device).merge().eval()
    backbone = as_whisper(stock(size), size)

    @torch.no_grad()
    def with_mole() -> None:
        shallow, _, _ = system.frontend(system.experts.whisper.embed_speech(speech, lengths))
        system.encode_deep(shallow)

    @torch.no_grad()
    def without() -> None:
        backbone.encode(speech, lengths)

    out = Outcome()
    out.race("mole", {"MoLE": with_mole, "backbone": without}, size.repeats)
    out.compare("mole", "MoLE", "backbone")
    return out

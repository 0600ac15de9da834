"""Each fast form of an expert's product in ``lole/fast.py`` against the plain one, on the jobs that it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch

from benchmarks.decoding import decode_steps, search_config
from benchmarks.harness import Outcome, Size, Work, alternate, peak_memory
from benchmarks.systems import LANGS, TOKENIZER, decoding_experts, utterances
from benchmarks.training import experts_step
from espnet_lole.inference.search import beam_rows
from espnet_lole.inference.transcriber import ExpertTranscriber
from espnet_lole.lole import fast

COUNTS = {16: (5, 3, 2, 2, 1, 1, 1, 1), 24: (7, 4, 3, 3, 2, 2, 2, 1)}
"""Utterances decoded together -> how many of them each language has."""
CHOICES: dict[str, Callable[..., Callable | None]] = {
    **dict.fromkeys(("batched", "grouped"), fast.choose),
    "in place": lambda *_: fast.inplace_expert_linear,
    "plain": lambda *_: None,
}
"""Form -> what takes the place of ``fast.choose``, which takes the first two wherever they can be taken."""


def with_form(work: Work, form: str) -> Work:
    """Return the work with a form of the products."""

    def run() -> object:
        with patch.object(fast, "choose", CHOICES[form]):
            return work()

    return run


def training_step(size: Size, form: str) -> Work:
    """Return a training step of experts with a form of the products."""
    return with_form(experts_step(size), form)


def fast_paths(size: Size) -> Outcome:
    """Measure decoding, encoding and training with each form that can be taken for them on this device."""
    out, cpu = Outcome(), size.device == "cpu"
    decoding = ("batched", "in place", "plain") if cpu else ("batched", "plain")
    for count in COUNTS:
        for beam in (1, 4):
            _race(out, f"steps of {count} utterances, beam {beam}", steps(size, count, beam), decoding, size.repeats)
    for beam in (1, 4):
        work = search(replace(size, beam=beam), 16)
        _race(out, f"whole decoding of 16 utterances, beam {beam}", work, decoding, max(3, size.repeats // 2))
    if cpu:
        _race(out, "encoder on 16 utterances", encoder(size, 16), ("in place", "plain"), size.repeats)
    if cpu or size.precision == torch.bfloat16:
        forms = ("in place" if cpu else "grouped", "plain")
        _race(out, "training step", experts_step(size), forms, size.repeats)
        for form in forms:
            memory = peak_memory(partial(training_step, form=form), size)
            out.add("fast_paths training step, memory", form, "GB", [memory])
        out.compare("fast_paths training step, memory", *forms)
    return out


def batch_langs(count: int) -> list[str]:
    """Return the languages of a batch, unequally many of each."""
    return [lang for lang, n in zip(LANGS, COUNTS[count], strict=True) for _ in range(n)]


def encoder(size: Size, count: int) -> Work:
    """Return a pass of the encoder."""
    experts, speech = decoding_experts(size), utterances(size, count)
    index = experts.indices(batch_langs(count))

    @torch.no_grad()
    def work() -> object:
        with experts.activate(index):
            return experts.whisper.encode(*speech)

    return work


def steps(size: Size, count: int, beam: int) -> Work:
    """Return cached steps of the decoder."""
    experts = decoding_experts(size)
    rows = beam_rows(torch.arange(count, device=size.device), beam)
    langs = [lang for lang in batch_langs(count) for _ in range(beam)]
    with torch.no_grad():
        encoded = experts.whisper.encode(*utterances(size, count)).select(rows)
    token = torch.full((len(rows), 1), TOKENIZER.sot, device=size.device)
    activate = partial(experts.activate, experts.indices(langs))
    return partial(decode_steps, experts.whisper, activate, encoded, token)


def search(size: Size, count: int) -> Work:
    """Return a decoding of whole utterances, from samples to tokens."""
    speech, lengths = utterances(size, count)
    transcriber = ExpertTranscriber(decoding_experts(size), TOKENIZER, search_config(size))
    return partial(transcriber, speech, lengths, batch_langs(count))


def _race(out: Outcome, job: str, work: Work, forms: tuple[str, ...], repeats: int) -> None:
    """Measure the forms in turn, in wall and in CPU time, and compare the first with the others."""
    rounds = alternate({form: with_form(work, form) for form in forms}, repeats)
    for i, name in enumerate((f"fast_paths {job}", f"fast_paths {job}, CPU time")):
        for form, seconds in rounds.items():
            out.add(name, form, "ms", [1000 * pair[i] for pair in seconds])
        out.compare(name, *forms)

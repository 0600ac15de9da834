"""Each fast form of an expert's product in ``lole/fast.py`` against the plain one, on the jobs that it is for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
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
BATCHED, GROUPED = "fast_paths batched_expert_linear", "fast_paths grouped_expert_linear"


def plain(work: Work) -> Work:
    """Return the work with the plain form of every product."""

    def run() -> object:
        with patch.object(fast, "choose", lambda *_: None):
            return work()

    return run


def fast_paths(size: Size) -> Outcome:
    """Measure decoding with ``batched_expert_linear``, and on a GPU training with ``grouped_expert_linear``."""
    out = Outcome()
    for count in COUNTS:
        for beam in (1, 4):
            _race(out, f"{BATCHED}: steps, {count} utterances, beam {beam}", steps(size, count, beam), size.repeats)
    for beam in (1, 4):
        name = f"{BATCHED}: whole decoding, 16 utterances, beam {beam}"
        _race(out, name, search(replace(size, beam=beam), 16), max(3, size.repeats // 2))
    if size.precision == torch.bfloat16 and size.device == "cuda":
        _race(out, f"{GROUPED}: training step", experts_step(size), size.repeats)
        for name, make in (("fast", experts_step), ("plain", plain_step)):
            out.add(f"{GROUPED}: training step, memory", name, "GB", [peak_memory(make, size)])
        out.compare(f"{GROUPED}: training step, memory", "fast", "plain")
    else:
        logging.warning(
            "grouped_expert_linear is for bfloat16 on a GPU: measure it by `make bench-gpu BENCH=fast_paths`"
        )
    return out


def plain_step(size: Size) -> Work:
    """A training step with the plain form."""
    return plain(experts_step(size))


def batch_langs(count: int) -> list[str]:
    """Return the languages of a batch, unequally many of each."""
    return [lang for lang, n in zip(LANGS, COUNTS[count], strict=True) for _ in range(n)]


def steps(size: Size, count: int, beam: int) -> Work:
    """Cached steps of the decoder."""
    experts, langs = decoding_experts(size), batch_langs(count)
    with torch.no_grad(), experts.activate(experts.indices(langs)):
        encoded = experts.whisper.encode(*utterances(size, count))
    rows = beam_rows(torch.arange(count, device=size.device), beam)
    token = torch.full((len(rows), 1), TOKENIZER.sot, device=size.device)
    index = [experts.indices(langs)[row] for row in rows.tolist()]
    return lambda: decode_steps(experts.whisper, lambda: experts.activate(index), encoded.select(rows), token)


def search(size: Size, count: int) -> Callable[[], object]:
    """Decode whole utterances, from samples to tokens."""
    speech, lengths = utterances(size, count)
    transcriber = ExpertTranscriber(decoding_experts(size), TOKENIZER, search_config(size))
    return lambda: transcriber(speech, lengths, batch_langs(count))


def _race(out: Outcome, benchmark: str, work: Work, repeats: int) -> None:
    """Measure fast and plain in turn, by the clock and by the time of the processor."""
    rounds = alternate({"fast": work, "plain": plain(work)}, repeats)
    for unit, i in (("ms", 0), ("CPU ms", 1)):
        name = f"{benchmark}{', CPU time' if i else ''}"
        for contender, seconds in rounds.items():
            out.add(name, contender, unit, [1000 * pair[i] for pair in seconds])
        out.compare(name, "fast", "plain")

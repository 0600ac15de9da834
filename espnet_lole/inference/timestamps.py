"""Whisper's tokens of time: what the search may choose where, and the segments that they cut a hypothesis into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_lole.whisper.tokenizer import WhisperTokens

STEP = 0.02
"""Seconds between two tokens of time."""
FIRST_TIME = 50
"""The first time is this many steps (1 s) at most, as in Whisper."""


@dataclass(frozen=True)
class TimedText:
    """Start and end in seconds from where the speech begins, and the tokens of the text between them."""

    start: float
    end: float
    tokens: list[int]


def restrict(logits: Tensor, chosen: Tensor, must_end: Tensor, tokens: WhisperTokens) -> Tensor:
    """Log-probabilities of the next token under the rules of openai-whisper's ``ApplyTimestampRules``.

    A hypothesis is made of segments: a time, text, a later time, which the next segment's first time follows, not earlier.
    Where the times together are likelier than the likeliest other token, the next token is a time. Languages and tasks are
    never chosen.

    Args:
        logits: scores of the vocabulary, shape (B, K, V).
        chosen: the hypotheses, shape (B, K, U).
        must_end: those whose next token is the end, which the last of these rules must not rule out, shape (B, K).
        tokens: of the vocabulary.

    Returns:
        Log-probabilities, -inf for what is not allowed, shape (B, K, V).
    """
    first, end, steps = tokens.first_time, tokens.end, chosen.shape[-1]
    logits = logits.clone()
    text, times = logits[..., :first], logits[..., first:]  # masked in place, with the special tokens behind the end
    text[..., end + 1 :] = -torch.inf
    ids = torch.arange(first, logits.shape[-1], device=logits.device)
    if steps == 0:
        times.masked_fill_(ids > first + FIRST_TIME, -torch.inf)
        timed = torch.ones_like(must_end)
    else:
        newest = chosen.amax(-1)  # times have the largest ids, and never decrease
        last = chosen[..., -1] >= first
        opened = last & (chosen[..., -2] >= first) if steps > 1 else last  # text follows
        closed = last & ~opened  # a time or the end follows
        times.masked_fill_(opened[..., None] | (ids < (newest + (~closed).long())[..., None]), -torch.inf)
        text[..., :end].masked_fill_(closed[..., None], -torch.inf)
        timed = (times.logsumexp(-1) > text.amax(-1)) & ~must_end
    text.masked_fill_(timed[..., None], -torch.inf)
    return logits.log_softmax(-1)


def cut_at_times(ids: Sequence[int], seconds: float, tokens: WhisperTokens) -> list[TimedText]:
    """The segments of a hypothesis.

    Times behind the end of the speech become its end. Text without a time behind it lasts until the end of the speech, and
    text that would begin there belongs to the segment before it, so that every segment lasts for 20 ms at least.

    Args:
        ids: of the hypothesis, times among them.
        seconds: how long the speech is, 25 ms at least.
        tokens: of the vocabulary.

    Returns:
        The segments, in their order; without any time, or without text, one that is as long as the speech.
    """
    last = int(seconds / STEP)
    found: list[TimedText] = []
    start, text = 0, []
    for token in [*ids, tokens.first_time + last]:
        if token < tokens.first_time:
            text.append(token)
            continue
        stop = min(token - tokens.first_time, last)
        if text and start == last and found:
            found[-1].tokens.extend(text)
        elif text:
            begin = 0 if start == last else start
            found.append(TimedText(round(begin * STEP, 2), seconds if stop == last else round(stop * STEP, 2), text))
        start, text = stop, []
    return found or [TimedText(0.0, seconds, [])]

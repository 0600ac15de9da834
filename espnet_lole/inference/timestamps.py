"""Whisper's timestamp tokens: which of them the search may predict, and the segments that they delimit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from espnet_lole.whisper.tokenizer import WhisperTokenizer

TIMESTAMP_SECONDS = 0.02
"""Seconds between two timestamp tokens."""
MAX_INITIAL_TIMESTAMP = 50
"""The first timestamp is at most this token (1 s), as in openai-whisper."""


def apply_timestamp_rules(logits: Tensor, tokens: Tensor, must_end: Tensor, tokenizer: WhisperTokenizer) -> Tensor:
    """Compute log-probabilities of the next token under the rules of openai-whisper's ``ApplyTimestampRules``.

    A hypothesis is a sequence of segments: a timestamp, text, a later timestamp, then the next segment, which does not
    begin earlier. If all timestamps together are more likely than the most likely other token, a timestamp comes next.
    Language and task tokens are never predicted.

    Args:
        logits: shape (B, K, V).
        tokens: the hypotheses so far, shape (B, K, U).
        must_end: hypotheses whose next token is the end token, whatever the timestamps' probability, shape (B, K).
        tokenizer: tells text, end and timestamp tokens apart.

    Returns:
        Log-probabilities, -inf for tokens that are not allowed, shape (B, K, V).
    """
    begin, eot, length = tokenizer.timestamp_begin, tokenizer.eot, tokens.shape[-1]
    logits = logits.clone()
    text, times = logits[..., :begin], logits[..., begin:]  # views, masked in place
    text[..., eot + 1 :] = -torch.inf
    ids = torch.arange(begin, logits.shape[-1], device=logits.device)
    if length == 0:
        times.masked_fill_(ids > begin + MAX_INITIAL_TIMESTAMP, -torch.inf)
        timed = torch.ones_like(must_end)
    else:
        newest = tokens.amax(-1)  # timestamps have the largest ids, and never decrease
        last = tokens[..., -1] >= begin
        opened = last & (tokens[..., -2] >= begin) if length > 1 else last  # text follows
        closed = last & ~opened  # a timestamp or the end follows
        times.masked_fill_(opened[..., None] | (ids < (newest + (~closed).long())[..., None]), -torch.inf)
        text[..., :eot].masked_fill_(closed[..., None], -torch.inf)
        timed = (times.logsumexp(-1) > text.amax(-1)) & ~must_end
    text.masked_fill_(timed[..., None], -torch.inf)
    return logits.log_softmax(-1)


def split_at_timestamps(
    ids: Sequence[int], seconds: float, tokenizer: WhisperTokenizer
) -> list[tuple[float, float, list[int]]]:
    """Split a hypothesis into segments.

    Timestamps after the end of the speech are moved to its end. Text without a timestamp after it lasts until the end
    of the speech, and text that would begin there joins the segment before it: every segment lasts 20 ms or more.

    Args:
        ids: the hypothesis, with timestamp tokens.
        seconds: duration of the speech, 25 ms or more.
        tokenizer: tells text and timestamp tokens apart.

    Returns:
        Start and end in seconds and text tokens of each segment, in order; without timestamps or without text, one
        segment of the whole speech.
    """
    begin, last = tokenizer.timestamp_begin, int(seconds / TIMESTAMP_SECONDS)
    segments: list[tuple[float, float, list[int]]] = []
    start, text = 0, []
    for token in [*ids, begin + last]:
        if token < begin:
            text.append(token)
            continue
        stop = min(token - begin, last)
        if text and start == last and segments:
            segments[-1][2].extend(text)
        elif text:
            first = 0.0 if start == last else round(start * TIMESTAMP_SECONDS, 2)
            segments.append((first, seconds if stop == last else round(stop * TIMESTAMP_SECONDS, 2), text))
        start, text = stop, []
    return segments or [(0.0, seconds, [])]

"""Greedy and beam search over a batch of utterances, with a key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_lole.inference.kv_cache import DecoderSteps, ReplayedSteps
from espnet_lole.inference.results import Hypothesis
from espnet_lole.inference.timestamps import apply_timestamp_rules
from espnet_lole.whisper.features import HOP, MAX_SAMPLES
from espnet_lole.whisper.model import Encoded, Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

LOOP_PHRASES = 3
"""Repetitions of a phrase that make a loop."""
SEGMENT_TOKENS = 3
"""Tokens of the shortest segment with timestamps: start, one token of text, end."""


@dataclass(frozen=True)
class SearchConfig:
    """Options of the search.

    Attributes:
        beam_size: K hypotheses per utterance; 1 is greedy.
        maxlenratio: maximum number of tokens per encoder frame (20 ms); 0: half of the decoder's positions.
        length_penalty: hypotheses are ranked by log-probability over length to this power.
        loop_tokens: a hypothesis that repeats a phrase three times or more over this many tokens is ended, cut back to
            one repetition and ranked below hypotheses without a loop; 0: off. A timestamp between phrases ends a loop.
        timestamps: predict Whisper's timestamp tokens, which count as tokens; the prompts must allow them.
    """

    beam_size: int = 1
    maxlenratio: float = 0.0
    length_penalty: float = 1.0
    loop_tokens: int = 24
    timestamps: bool = False

    def __post_init__(self) -> None:
        if self.beam_size < 1 or self.maxlenratio < 0 or self.length_penalty < 0:
            raise ValueError(f"expected beam_size >= 1, maxlenratio >= 0 and length_penalty >= 0, got {self}")
        if 0 < self.loop_tokens < LOOP_PHRASES or self.loop_tokens < 0:
            raise ValueError(f"expected loop_tokens of 0, or {LOOP_PHRASES} or more, got {self.loop_tokens}")
        longest = self.maxlenratio * MAX_SAMPLES / (2 * HOP)
        if self.timestamps and 0 < longest < SEGMENT_TOKENS:
            raise ValueError(
                f"maxlenratio {self.maxlenratio} allows 30 s of speech {int(longest)} tokens, but timestamps need "
                f"{SEGMENT_TOKENS} (a timestamp, text, a timestamp): raise it, or set it to 0"
            )


@torch.no_grad()
def search(
    whisper: Whisper, encoded: Encoded, prompts: Tensor, tokenizer: WhisperTokenizer, config: SearchConfig
) -> list[Hypothesis]:
    """Find the best hypothesis of each utterance.

    The K hypotheses of an utterance are K rows of the decoder's batch: activate the experts of ``beam_rows`` before
    the call. A finished hypothesis stays in its beam and is extended by end tokens of log-probability 0.

    Args:
        whisper: in evaluation mode.
        encoded: encoder states of B utterances.
        prompts: shape (B, P).
        tokenizer: of the model's vocabulary; languages and tasks are never predicted, timestamps only if configured.
        config: options of the search.

    Returns:
        B hypotheses.
    """
    k, batch, eot = config.beam_size, len(prompts), tokenizer.eot
    limits = token_limits(whisper, encoded, prompts.shape[1], config)  # (B,)
    longest = int(limits.max())
    rows = encoded.select(beam_rows(torch.arange(batch, device=prompts.device), k)) if k > 1 else encoded
    steps = ReplayedSteps(whisper, rows, prompts.shape[1] + longest) if prompts.is_cuda else DecoderSteps(whisper, rows)
    first_rows = k * torch.arange(batch, device=prompts.device)[:, None]  # (B, 1)
    sum_log_probs = torch.full((batch, k), -torch.inf, device=prompts.device)
    sum_log_probs[:, 0] = 0.0  # the K hypotheses are equal before the first step
    tokens = prompts.new_empty((batch, k, 0))  # (B, K, U)
    finished = torch.zeros_like(sum_log_probs, dtype=torch.bool)
    logits = steps.prefill(beam_rows(prompts, k))  # (B K, V)
    for step in range(longest + 1):
        must_end = finished | (step >= limits)[:, None]
        if step >= config.loop_tokens > 0 and step % (config.loop_tokens // LOOP_PHRASES) == 0:
            must_end |= is_loop(tokens[..., -config.loop_tokens :])
        log_probs = _next_log_probs(logits.float().view(batch, k, -1), tokens, must_end, tokenizer, config)
        sum_log_probs, origin, newest = _extend(sum_log_probs, log_probs, must_end, finished, eot)
        tokens = torch.cat([tokens.gather(1, origin[..., None].expand_as(tokens)), newest[..., None]], dim=2)
        finished = newest == eot
        if finished.all():
            break
        logits = steps.step(newest.view(-1, 1), (first_rows + origin).view(-1) if k > 1 else None)
    return _rank(tokens, sum_log_probs, eot, config)


def beam_rows(x: Tensor, beam_size: int) -> Tensor:
    """Repeat each utterance's row for its K hypotheses, (B, ...) to (B K, ...)."""
    return x.repeat_interleave(beam_size, dim=0) if beam_size > 1 else x


def token_limits(whisper: Whisper, encoded: Encoded, prompt: int, config: SearchConfig) -> Tensor:
    """Compute the maximum number of tokens of each utterance, shape (B,), independent of the rest of the batch."""
    states, mask = encoded.states, encoded.mask
    frames = torch.full((len(states),), states.shape[1], device=states.device) if mask is None else mask.sum(1)
    positions = whisper.model.config.max_target_positions
    if not config.maxlenratio:
        return torch.full_like(frames, positions // 2)
    least = SEGMENT_TOKENS if config.timestamps else 1
    return (config.maxlenratio * frames).long().clamp(least, positions - prompt - 1)


def is_loop(tail: Tensor) -> Tensor:
    """Tell whether the last tokens of each hypothesis (B, K, U) repeat one phrase, shape (B, K)."""
    periods = range(1, tail.shape[-1] // LOOP_PHRASES + 1)
    return torch.stack([(tail[..., p:] == tail[..., :-p]).all(-1) for p in periods]).any(0)


def cut_loop(tokens: list[int], loop_tokens: int) -> list[int]:
    """Cut a phrase that is repeated over the last ``loop_tokens`` tokens or more back to one repetition."""
    for period in range(1, loop_tokens // LOOP_PHRASES + 1):
        start = len(tokens)
        while start > period and tokens[start - 1] == tokens[start - 1 - period]:
            start -= 1
        if len(tokens) - start + period >= loop_tokens:
            return tokens[:start]
    return tokens


def _next_log_probs(
    logits: Tensor, tokens: Tensor, must_end: Tensor, tokenizer: WhisperTokenizer, config: SearchConfig
) -> Tensor:
    """Turn logits (B, K, V) into log-probabilities of the tokens that may come next, shape (B, K, V')."""
    if config.timestamps:
        return apply_timestamp_rules(logits, tokens, must_end, tokenizer)
    return logits[..., : tokenizer.eot + 1].log_softmax(-1)  # text and end tokens have the lowest ids


def _extend(
    sum_log_probs: Tensor, log_probs: Tensor, must_end: Tensor, finished: Tensor, eot: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the K best extensions of each beam: log-probabilities, extended hypotheses and new tokens, all (B, K)."""
    batch, _, vocab = log_probs.shape
    final = log_probs[..., eot].masked_fill(finished, 0.0)
    log_probs = log_probs.masked_fill(must_end[..., None], -torch.inf)
    log_probs[..., eot] = final
    best, index = (sum_log_probs[..., None] + log_probs).view(batch, -1).topk(sum_log_probs.shape[1], dim=1)
    return best, index // vocab, index % vocab


def _rank(tokens: Tensor, sum_log_probs: Tensor, eot: int, config: SearchConfig) -> list[Hypothesis]:
    """Choose the best of each utterance's hypotheses (B, K, U), without loops if there is one."""
    lengths = (tokens != eot).sum(-1) + 1  # (B, K), with the end token
    scores = sum_log_probs / lengths**config.length_penalty
    best = []
    for beam in zip(tokens.tolist(), lengths.tolist(), scores.tolist(), strict=True):
        hypotheses = []
        for ids, length, score in zip(*beam, strict=True):
            text = ids[: length - 1]
            cut = cut_loop(text, config.loop_tokens) if config.loop_tokens else text
            hypotheses.append(Hypothesis(cut, score, looped=len(cut) < len(text)))
        best.append(max(hypotheses, key=lambda h: (not h.looped, h.score)))
    return best

"""Greedy and beam search for many utterances at once, with a key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_lole.inference.kv_cache import ReplayedSteps, Steps
from espnet_lole.inference.timestamps import restrict
from espnet_lole.whisper.features import HOP, MAX_SAMPLES
from espnet_lole.whisper.model import Backbone, Encoded
from espnet_lole.whisper.tokenizer import WhisperTokens

LOOP_PHRASES = 3
"""How often a phrase is repeated, at least, in what counts as a loop."""
SEGMENT_TOKENS = 3
"""Tokens of the shortest segment with times: its start, one of text, its end."""


@dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Attributes:
        beam_size: K; 1 is greedy.
        maxlenratio: at most this many tokens per encoder frame (of 20 ms); 0: half of the decoder's positions, as in Whisper.
        length_penalty: a hypothesis is ranked by its log-probability over its length to this power.
        loop_tokens: a hypothesis that repeats itself (a phrase three times or more) over this many tokens is ended, cut back
            to the phrase said once, and ranked below those that do not; 0: none is. A time between the phrases ends a loop.
        timestamps: choose Whisper's tokens of time too, by Whisper's rules; the prompts must then allow them. They count as
            tokens.
    """

    beam_size: int = 1
    maxlenratio: float = 0.0
    length_penalty: float = 1.0
    loop_tokens: int = 0
    timestamps: bool = False

    def __post_init__(self) -> None:
        if self.beam_size < 1 or self.maxlenratio < 0 or self.length_penalty < 0:
            raise ValueError(f"expected beam_size >= 1, maxlenratio >= 0 and length_penalty >= 0, got {self}")
        if 0 < self.loop_tokens < LOOP_PHRASES or self.loop_tokens < 0:
            raise ValueError(f"expected loop_tokens of 0, or {LOOP_PHRASES} or more, got {self.loop_tokens}")
        most = self.maxlenratio * MAX_SAMPLES / (2 * HOP)
        if self.timestamps and 0 < most < SEGMENT_TOKENS:
            raise ValueError(
                f"expected with timestamps a maxlenratio that leaves 30 s {SEGMENT_TOKENS} tokens (a time, text, a time), "
                f"got {self.maxlenratio}, which leaves {int(most)}: raise it, or give 0"
            )


@dataclass(frozen=True)
class Hypothesis:
    """What was found.

    Attributes:
        tokens: ids without prompt and end, and without what was cut off a loop.
        score: log-probability over length to the power ``length_penalty``; both count what was cut off.
        looped: was something cut off?
    """

    tokens: list[int]
    score: float
    looped: bool = False


@torch.no_grad()
def search(
    backbone: Backbone, encoded: Encoded, prompts: Tensor, tokens: WhisperTokens, config: SearchConfig
) -> list[Hypothesis]:
    """The best hypothesis of each utterance.

    The K hypotheses of an utterance are K rows of the batch: route them (``beam_rows``) before the call. A finished one
    stays in its beam and is extended by the end token at no cost.

    Args:
        backbone: the model, in evaluation mode.
        encoded: states of the encoder of B utterances.
        prompts: shape (B, P).
        tokens: of the vocabulary; languages and tasks are never chosen, times only with ``config.timestamps``.
        config: how to search.

    Returns:
        B hypotheses.
    """
    k, batch, end = config.beam_size, len(prompts), tokens.end
    limits = token_limits(backbone, encoded, prompts.shape[1], config)  # (B,)
    rows = Encoded(beam_rows(encoded.states, k), None if encoded.mask is None else beam_rows(encoded.mask, k))
    scores = torch.full((batch, k), -torch.inf, device=prompts.device)
    scores[:, 0] = 0.0  # all K start alike: the first step chooses from one
    chosen = prompts.new_full((batch, k, 0), end)
    done = torch.zeros_like(scores, dtype=torch.bool)
    longest = int(limits.max())
    steps = ReplayedSteps(backbone, rows, prompts.shape[1] + longest) if prompts.is_cuda else Steps(backbone, rows)
    logits = steps.start(beam_rows(prompts, k))
    for step in range(longest + 1):
        logits = logits.float()  # (B K, V)
        must_end = done | (step >= limits)[:, None]
        if step >= config.loop_tokens > 0 and step % (config.loop_tokens // LOOP_PHRASES) == 0:
            must_end |= _in_loop(chosen[..., -config.loop_tokens :])
        if config.timestamps:
            allowed = restrict(logits.view(batch, k, -1), chosen, must_end, tokens)
        else:
            allowed = logits[:, : end + 1].log_softmax(-1).view(batch, k, end + 1)
        scores, origin, last = _extend(scores, allowed, must_end, done, end)
        chosen = torch.cat([chosen.gather(1, origin[..., None].expand_as(chosen)), last[..., None]], dim=2)
        done = last == end
        if done.all():
            break
        rows_before = (origin + k * torch.arange(batch, device=origin.device)[:, None]).view(-1) if k > 1 else None
        logits = steps.follow(last.view(-1, 1), rows_before)
    return _best(chosen, scores, end, config)


def beam_rows(x: Tensor, beam_size: int) -> Tensor:
    """Repeat each utterance's row for its K hypotheses, (B, ...) to (B K, ...)."""
    return x.repeat_interleave(beam_size, dim=0) if beam_size > 1 else x


def token_limits(backbone: Backbone, encoded: Encoded, prompt: int, config: SearchConfig) -> Tensor:
    """The most tokens of each utterance, shape (B,); it does not depend on the utterances beside it."""
    states, mask = encoded.states, encoded.mask
    frames = torch.full((len(states),), states.shape[1], device=states.device) if mask is None else mask.sum(1)
    positions = backbone.model.config.max_target_positions
    most = positions - prompt - 1 if config.maxlenratio else positions // 2
    least = SEGMENT_TOKENS if config.timestamps else 1
    return (config.maxlenratio * frames).long().clamp(least, most) if config.maxlenratio else torch.full_like(frames, most)


def _extend(scores: Tensor, log_probs: Tensor, must_end: Tensor, done: Tensor, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """The K best extensions of each beam: scores, the hypotheses they extend and their tokens, all (B, K)."""
    batch, k, vocab = log_probs.shape
    final = log_probs[..., end].masked_fill(done, 0.0)
    log_probs = log_probs.masked_fill(must_end[..., None], -torch.inf)
    log_probs[..., end] = final
    best, where = (scores[..., None] + log_probs).view(batch, -1).topk(k, dim=1)
    return best, where // vocab, where % vocab


def _in_loop(tail: Tensor) -> Tensor:
    """Does the end of a hypothesis (B, K, N) only repeat one phrase? Shape (B, K)."""
    length = tail.shape[-1]
    return torch.stack([(tail[..., p:] == tail[..., :-p]).all(-1) for p in range(1, length // LOOP_PHRASES + 1)]).any(0)


def cut_loop(tokens: list[int], loop_tokens: int) -> list[int]:
    """The tokens, with a phrase that is repeated at their end over ``loop_tokens`` or more said once."""
    for period in range(1, loop_tokens // LOOP_PHRASES + 1):
        start = len(tokens)
        while start > period and tokens[start - 1] == tokens[start - 1 - period]:
            start -= 1
        if len(tokens) - start + period >= loop_tokens:
            return tokens[:start]
    return tokens


def _best(chosen: Tensor, scores: Tensor, end: int, config: SearchConfig) -> list[Hypothesis]:
    lengths = (chosen != end).sum(-1) + 1  # (B, K), the end token counted
    ranked = scores / lengths**config.length_penalty
    found = []
    for rows, counts, values in zip(chosen.tolist(), lengths.tolist(), ranked.tolist(), strict=True):
        tried = []
        for row, count, value in zip(rows, counts, values, strict=True):
            tokens = row[: count - 1]
            kept = cut_loop(tokens, config.loop_tokens) if config.loop_tokens else tokens
            tried.append(Hypothesis(kept, value, len(kept) < len(tokens)))
        found.append(max(tried, key=lambda h: (not h.looped, h.score)))
    return found

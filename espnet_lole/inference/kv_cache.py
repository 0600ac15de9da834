"""Steps of the decoder with a key-value cache, on a GPU replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet_lole.whisper.model import Encoded, Whisper

ROOM = 64
"""Tokens per hypothesis for which replayed steps allocate memory at first."""
Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Turns a step into a function that replays it."""


class DecoderSteps:
    """Logits of each hypothesis' next token, one decoder step at a time.

    Args:
        whisper: in evaluation mode, with the experts of the hypotheses active.
        encoded: encoder states, a row for each of N hypotheses.
    """

    def __init__(self, whisper: Whisper, encoded: Encoded) -> None:
        self._whisper, self._encoded = whisper, encoded
        self._cache = whisper.new_cache()

    def prefill(self, prompts: Tensor) -> Tensor:
        """Run the prompts (N, P) and return the logits of the next token (N, V)."""
        return self._logits(prompts)

    def step(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        """Extend each hypothesis by a token and return the logits of the next one.

        Args:
            tokens: shape (N, 1).
            origin: the hypothesis that each row extends, shape (N,); None: its own.

        Returns:
            Logits, shape (N, V).
        """
        if origin is not None:  # encoder states are the same for all hypotheses of an utterance
            self._cache.self_attention_cache.reorder_cache(origin)
        return self._logits(tokens)

    def _logits(self, tokens: Tensor) -> Tensor:
        return self._whisper.logits(self._whisper.decode(tokens, self._encoded, self._cache)[:, -1])


class ReplayedSteps(DecoderSteps):
    """Decoder steps of constant shape in fixed memory, captured as a CUDA graph to avoid per-kernel launches.

    The first step runs eagerly, the second is captured and later ones are replayed. When the memory is full it is
    doubled and the graph is captured again. The logits of a step are overwritten by the next.

    Args:
        whisper: in evaluation mode; the same experts must be active until the last step.
        encoded: encoder states, a row for each of N hypotheses.
        longest: tokens of the longest possible hypothesis, prompt included.
        room: tokens for which memory is allocated at first.
        record: turns a step into its replay; the default captures a CUDA graph.
    """

    def __init__(
        self, whisper: Whisper, encoded: Encoded, longest: int, room: int = ROOM, record: Recorder | None = None
    ) -> None:
        super().__init__(whisper, encoded)
        self._cache = whisper.new_cache(min(room, longest))
        self._longest, self._record = longest, record or capture
        self._tokens = torch.zeros(len(encoded.states), 1, dtype=torch.long, device=encoded.states.device)
        self._origin: Tensor | None = None
        self._cached = self._runs = 0  # tokens in the cache; steps since its shape changed
        self._replay = self._eager

    def prefill(self, prompts: Tensor) -> Tensor:
        """See ``DecoderSteps``."""
        self._cached = prompts.shape[1]
        return super().prefill(prompts)

    def step(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        """See ``DecoderSteps``."""
        self._tokens.copy_(tokens)
        if origin is not None:
            self._origin = origin.clone() if self._origin is None else self._origin.copy_(origin)
        if self._cached == self._cache.room:
            self._double_room()
        elif self._runs == 1:
            self._replay = self._record(self._eager)
        self._cached, self._runs = self._cached + 1, self._runs + 1
        return self._replay()

    def _eager(self) -> Tensor:
        if self._origin is not None:
            for layer in self._cache.self_attention_cache.layers:
                for states in (layer.keys, layer.values):
                    states.copy_(states.index_select(0, self._origin))
        return self._logits(self._tokens)

    def _double_room(self) -> None:
        self._replay, self._runs = self._eager, 0
        more = min(self._cache.room, self._longest - self._cache.room)
        self._cache.room += more
        for layer in self._cache.self_attention_cache.layers:
            layer.keys, layer.values = (F.pad(states, (0, 0, 0, more)) for states in (layer.keys, layer.values))


def capture(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture a step as a CUDA graph, without running it, and return its replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay

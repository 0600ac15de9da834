"""The steps of the decoder in a search: one after the other, or on a GPU as one graph that is replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet_lole.whisper.model import Backbone, Encoded

ROOM = 64
"""Tokens that replayed steps have memory for at first."""
Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Makes of a step a function that replays it."""


class Steps:
    """Scores of the next token of each hypothesis, given that after its last one.

    Args:
        backbone: in evaluation mode, routed.
        encoded: states of the encoder, a row for each hypothesis.
    """

    def __init__(self, backbone: Backbone, encoded: Encoded) -> None:
        self._backbone, self._encoded = backbone, encoded
        self._cache = backbone.new_cache()

    def _scores(self, tokens: Tensor) -> Tensor:
        return self._backbone.logits(self._backbone.decode(tokens, self._encoded, self._cache)[:, -1])

    def start(self, prompts: Tensor) -> Tensor:
        """Scores (N, V) after the prompts, shape (N, P)."""
        return self._scores(prompts)

    def follow(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        """Scores (N, V) after another token of each hypothesis.

        Args:
            tokens: shape (N, 1).
            origin: the hypothesis that each one goes on from, shape (N,); None: itself.
        """
        if origin is not None:  # the states of the speech are the same for all hypotheses of an utterance
            self._cache.self_attention_cache.reorder_cache(origin)
        return self._scores(tokens)


class ReplayedSteps(Steps):
    """Steps of one shape in fixed memory, which a GPU replays as a graph: it need not be told each of their thousand kernels.

    The first step runs as it is, the second is recorded, and later ones are replayed; so again where the memory is full and is
    doubled. What a call returns holds until the next.

    Args:
        backbone: in evaluation mode, routed; the same route must lead until the last step.
        encoded: states of the encoder, a row for each hypothesis.
        longest: tokens of the longest hypothesis that there can be, with the prompt.
        room: tokens that there is memory for at first.
        record: another recorder than that of a GPU's graphs.
    """

    def __init__(
        self, backbone: Backbone, encoded: Encoded, longest: int, room: int = ROOM, record: Recorder | None = None
    ) -> None:
        super().__init__(backbone, encoded)
        self._cache = backbone.new_cache(min(room, longest))
        self._longest, self._record = longest, record or _recorded
        self._tokens = torch.zeros(len(encoded.states), 1, dtype=torch.long, device=encoded.states.device)
        self._origin: Tensor | None = None
        self._used = self._ran = 0  # tokens in memory; steps since its shape changed
        self._replay = self._step

    def start(self, prompts: Tensor) -> Tensor:
        """See ``Steps``."""
        self._used = prompts.shape[1]
        return super().start(prompts)

    def follow(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        """See ``Steps``."""
        self._tokens.copy_(tokens)
        if origin is not None:
            self._origin = origin.clone() if self._origin is None else self._origin.copy_(origin)
        if self._used == self._cache.room:
            self._double_room()
        elif self._ran == 1:
            self._replay = self._record(self._step)
        self._used, self._ran = self._used + 1, self._ran + 1
        return self._replay()

    def _step(self) -> Tensor:
        if self._origin is not None:
            for layer in self._cache.self_attention_cache.layers:
                for kept in (layer.keys, layer.values):
                    kept.copy_(kept.index_select(0, self._origin))
        return self._scores(self._tokens)

    def _double_room(self) -> None:
        self._replay, self._ran = self._step, 0
        more = min(self._cache.room, self._longest - self._cache.room)
        self._cache.room += more
        for layer in self._cache.self_attention_cache.layers:
            layer.keys, layer.values = (F.pad(kept, (0, 0, 0, more)) for kept in (layer.keys, layer.values))


def _recorded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A step as a graph of a GPU; recording does not run it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores = step()

    def replay() -> Tensor:
        graph.replay()
        return scores

    return replay

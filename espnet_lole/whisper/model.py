"""A frozen or trainable Whisper of ``transformers``, run on inputs of any length with padding masked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache, StaticLayer

from espnet_lole.whisper.features import HOP, MAX_SAMPLES, SAMPLE_RATE, LogMel, check_lengths, length_mask
from espnet_lole.whisper.loss import frozen_token_costs


@dataclass(frozen=True)
class Encoded:
    """States of the encoder, shape (B, T, D), and which of them are speech, shape (B, T), or None if all are."""

    states: Tensor
    mask: Tensor | None

    @property
    def attention_mask(self) -> Tensor | None:
        """The mask as attention takes it, shape (B, 1, 1, T)."""
        return None if self.mask is None else self.mask[:, None, None]


class Backbone(nn.Module):
    """Features, encoder and decoder of a Whisper.

    The layers are those of ``transformers``; this class drives them so that a padded frame is never attended to.
    Adapters are put into ``self.model``, and weights keep the names they have in its checkpoints.

    Attributes:
        augment: in training, called with the features (B, M, F) and each utterance's frames of speech (B,), gives others.
        recompute: None keeps what each layer computes until the backward pass. Else a layer is computed again there, within
            the context that this gives as the layer runs first: less memory, a third more time.

    Args:
        model: any Whisper that ``transformers`` loads.
        window: ``"short"`` takes inputs as long as they are, ``"short+1s"`` with so much silence behind them, ``"30s"`` with
            silence up to 30 s, as in Whisper's own training. The model's configuration gets it, and keeps it where the model is
            saved.
        precision: of the matrix products. Below float32 the matrices are stored in it, once; layer norms, the residual
            stream and whatever trains stay in float32.

    Raises:
        ValueError: the window is none of these.
    """

    def __init__(
        self, model: WhisperForConditionalGeneration, window: str = "short", precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self._silence = _silence(window)
        model.set_attn_implementation("sdpa")
        self.model = model
        self.features = LogMel(model.config.num_mel_bins)
        self.window = model.config.window = window
        self.precision = precision
        self.augment: Callable[[Tensor, Tensor], Tensor] | None = None
        self.recompute: Callable[[], AbstractContextManager] | None = None
        if precision != torch.float32:
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Conv1d):  # the token embeddings are the output layer's matrix
                    module.to(precision)
            for layer in (*self.encoder.layers, *self.decoder.layers):
                for module in layer.children():
                    if isinstance(module, nn.LayerNorm):  # once here, not in each linear and adapter that it feeds
                        module.register_forward_hook(lambda _norm, _inputs, output: output.to(precision))

    def autocast(self) -> AbstractContextManager:
        """The context in which the layers run in ``precision``."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.encoder.conv1.weight.device.type, self.precision)

    @property
    def encoder(self) -> nn.Module:
        """The encoder's modules in ``transformers``."""
        return self.model.model.encoder

    @property
    def decoder(self) -> nn.Module:
        """The decoder's modules in ``transformers``."""
        return self.model.model.decoder

    def input_samples(self, samples: int) -> int:
        """How many samples the encoder works through for an utterance of so many."""
        return min(samples + self._silence, MAX_SAMPLES)

    def embed_speech(self, speech: Tensor, lengths: Tensor) -> Encoded:
        """Speech to the input of encoder layer 1.

        Args:
            speech: samples at 16 kHz, shape (B, S).
            lengths: samples of each utterance, shape (B,).

        Returns:
            The embedded frames, two mel frames each.

        Raises:
            ValueError: an utterance is shorter than 25 ms or longer than 30 s.
        """
        spoken = lengths // HOP
        if self._silence:
            speech, lengths = _pad_with_silence(speech, lengths, self._silence)
        mel, frames = self.features(speech, lengths)
        if self.augment is not None and self.training:
            mel = self.augment(mel, spoken)
        return self.embed_mel(mel, frames)

    def embed_mel(self, mel: Tensor, frames: Tensor) -> Encoded:
        """Mel features (B, M, F) of ``frames`` (B,) frames each to the input of encoder layer 1."""
        states = self.convolve(mel, length_mask(frames, mel.shape[-1]))
        lengths = (frames + 1) // 2
        mask = None if bool((lengths == states.shape[1]).all()) else length_mask(lengths, states.shape[1])
        return Encoded(states, mask)

    def convolve(self, mel: Tensor, mask: Tensor) -> Tensor:
        """Mel features (B, M, F), of which mask (B, F) is True for speech, to states with positions, shape (B, T, D)."""
        with self.autocast():
            x = F.gelu(self.encoder.conv1(mel)) * mask[:, None]  # (B, D, F)
            x = F.gelu(self.encoder.conv2(x)).transpose(1, 2)  # (B, T, D)
        return x + self.encoder.embed_positions.weight[: x.shape[1]]

    def encode_layers(self, x: Encoded, start: int, stop: int) -> Encoded:
        """Run encoder layers ``start + 1 .. stop``."""
        states = x.states
        with self.autocast():
            for layer in self.encoder.layers[start:stop]:
                states = self._run(layer, states, x.attention_mask)
        return Encoded(states, x.mask)

    def encode(self, speech: Tensor, lengths: Tensor) -> Encoded:
        """Run the whole encoder on samples at 16 kHz, shape (B, S), of ``lengths`` (B,) samples each.

        Raises:
            ValueError: an utterance is shorter than 25 ms or longer than 30 s.
        """
        return self.finish(self.embed_speech(speech, lengths), 0)

    def finish(self, x: Encoded, start: int) -> Encoded:
        """Run encoder layers ``start + 1`` to the last, and the final norm."""
        x = self.encode_layers(x, start, len(self.encoder.layers))
        return Encoded(self.encoder.layer_norm(x.states).to(self.precision), x.mask)

    def decode(self, tokens: Tensor, encoded: Encoded, cache: EncoderDecoderCache | None = None) -> Tensor:
        """Run the decoder.

        Args:
            tokens: token ids, padded at the right, shape (B, U); with a cache, those that it has not seen yet (one,
                once it has seen any).
            encoded: states of the encoder.
            cache: keys and values of earlier tokens, extended in place.

        Returns:
            The decoder's last hidden states, shape (B, U, D).
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)  # (U,)
        seen = None  # causal over the given tokens; a single new token sees all earlier ones
        if cache is not None:
            positions = positions + cache.get_seq_length()
        if (room := getattr(cache, "room", None)) is not None:
            seen = (torch.arange(room, device=tokens.device) <= positions[:, None])[None, None]  # (1, 1, U, room)
        states = self.decoder.embed_tokens(tokens) + self.decoder.embed_positions.weight[positions]
        with self.autocast():
            for layer in self.decoder.layers:
                states = self._run(
                    layer,
                    states,
                    seen,
                    encoded.states,
                    encoder_attention_mask=encoded.attention_mask,
                    past_key_values=cache,
                    use_cache=cache is not None,
                )
        return self.decoder.layer_norm(states)

    def _run(self, layer: nn.Module, *inputs: Tensor | None, **options: Any) -> Tensor:
        """A layer's output, of which ``recompute`` decides what is kept for the backward pass."""
        if self.recompute is None or not torch.is_grad_enabled():
            return layer(*inputs, **options)
        contexts = nullcontext(), self.recompute()
        return checkpoint(layer, *inputs, use_reentrant=False, context_fn=lambda: contexts, **options)

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states of the decoder (..., D) to scores of the vocabulary (..., V)."""
        with self.autocast():
            return self.model.proj_out(states)

    def token_costs(self, states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of target tokens (N,) given the decoder's states (N, D), and whether each is the likeliest; (N,) both.

        The output layer is taken as frozen: no gradient reaches it.
        """
        with self.autocast():
            return frozen_token_costs(states, self.model.proj_out.weight, wanted)

    @contextmanager
    def recorded(self, layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
        """Within the context, the output of each of these layers, shape (B, T, D), is appended to the list as it runs."""
        states: list[Tensor] = []
        hooks = [layer.register_forward_hook(lambda _layer, _inputs, output: states.append(output)) for layer in layers]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def new_cache(self, room: int | None = None) -> EncoderDecoderCache:
        """An empty cache for ``decode``: one that grows, or one of fixed memory with room for so many tokens."""
        if room is None:
            return EncoderDecoderCache(DynamicCache(), DynamicCache())
        fixed = Cache(layers=[StaticLayer(room) for _ in self.decoder.layers])
        cache = EncoderDecoderCache(fixed, DynamicCache())
        cache.room = room
        return cache


def _silence(window: str) -> int:
    """Samples of silence behind an utterance; those beyond 30 s fall away."""
    if window == "30s":
        return MAX_SAMPLES
    found = re.fullmatch(r"short(?:\+(\d+(?:\.\d+)?)s)?", window)
    if found is None:
        raise ValueError(f"expected window: short, short+<seconds of silence>s such as short+1s, or 30s, got {window!r}")
    return round(float(found[1] or 0) * SAMPLE_RATE)


def _pad_with_silence(speech: Tensor, lengths: Tensor, silence: int) -> tuple[Tensor, Tensor]:
    """So many samples of silence behind each utterance, up to 30 s: samples (B, S'), and the length of each with it (B,)."""
    check_lengths(lengths)
    speech = speech * length_mask(lengths, speech.shape[1])
    lengths = (lengths + silence).clamp(max=MAX_SAMPLES)
    return F.pad(speech, (0, int(lengths.max()) - speech.shape[1])), lengths

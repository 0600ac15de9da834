"""A frozen or trainable Whisper of ``transformers``, run on inputs of any length with padding masked."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache, StaticLayer
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from espnet_lole.whisper.features import HOP, MAX_SAMPLES, SAMPLE_RATE, LogMel, check_lengths, length_mask

FILLS = ("silence", "zeros")
"""How runtimes pad to 30 s: transformers (and openai-whisper) the samples, faster-whisper the features, with zeros."""
MAX_FRAMES = MAX_SAMPLES // HOP
HEAD_MASKS = "layer_head_mask" in inspect.signature(WhisperEncoderLayer.forward).parameters
"""Whether this version of ``transformers`` masks heads of attention: 4 does."""


@dataclass(frozen=True)
class Encoded:
    """States of the encoder, shape (B, T, D), and which of them are speech, shape (B, T), or None if all are."""

    states: Tensor
    mask: Tensor | None

    @property
    def attention_mask(self) -> Tensor | None:
        """The mask as attention takes it, shape (B, 1, 1, T)."""
        return None if self.mask is None else self.mask[:, None, None]

    def select(self, rows: Tensor) -> Encoded:
        """Return the utterances ``rows`` (N,), which may repeat."""
        return Encoded(self.states[rows], None if self.mask is None else self.mask[rows])


class FixedLayer(StaticLayer):
    """Keys and values of one layer in memory of fixed size, which counts its positions in every version."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write states (B, H, U, D) after those before, and return all positions."""
        if not self.is_initialized:
            size = (*key_states.shape[:2], self.max_cache_len, key_states.shape[3])
            self.keys, self.values = key_states.new_zeros(size), value_states.new_zeros(size)
            self.length = torch.zeros((), dtype=torch.long, device=key_states.device)
            self.is_initialized = True
        positions = torch.arange(key_states.shape[2], device=self.keys.device) + self.length
        self.length += key_states.shape[2]  # in place: part of a captured graph
        self.keys.index_copy_(2, positions, key_states)
        self.values.index_copy_(2, positions, value_states)
        return self.keys, self.values

    def get_seq_length(self, *_args: Any) -> Tensor | int:
        """Return the number of positions that are written."""
        return self.length if self.is_initialized else 0


class FixedCache(EncoderDecoderCache):
    """Keys and values of at most ``room`` decoder positions, in memory of fixed size.

    Args:
        num_layers: of the decoder.
        room: positions.
    """

    def __init__(self, num_layers: int, room: int) -> None:
        super().__init__(Cache(layers=[FixedLayer(room) for _ in range(num_layers)]), DynamicCache())
        self.room = room


class Whisper(nn.Module):
    """Features, encoder and decoder of a Whisper.

    The layers are those of ``transformers``; this class drives them so that a padded frame is never attended to.
    Adapters are put into ``self.model``; weights have the names they have in its checkpoints.

    Attributes:
        augment: called in training with the features (B, M, F) and each utterance's frames of speech (B,); returns
            features.
        recompute: None stores what each layer computes until the backward pass. Otherwise layers are computed again in
            the backward pass, within the context that this returns when the layer first runs: less memory, a third
            more time.

    Args:
        model: any Whisper that ``transformers`` loads.
        pad_to: ``"none"`` takes inputs as long as they are, ``"+1s"`` appends that much silence, ``"30s"`` pads with
            silence to 30 s, as in Whisper's own training.
        precision: of the matrix products. Below float32 the matrices are stored in it; layer norms, the residual stream
            and trained parameters stay in float32.
        share_30s: share of the training batches that are padded to 30 s whatever ``pad_to`` is, in turn by ``FILLS``.

    Raises:
        ValueError: ``pad_to`` is none of these, or ``share_30s`` is not 0 to 1.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        pad_to: str = "none",
        precision: torch.dtype = torch.float32,
        share_30s: float = 0.0,
    ) -> None:
        super().__init__()
        self._silence = silence_samples(pad_to)
        if not 0.0 <= share_30s <= 1.0:
            raise ValueError(f"expected share_30s of 0 to 1, got {share_30s}")
        self.share_30s = share_30s
        model.set_attn_implementation("sdpa")
        self.model = model
        self.features = LogMel(model.config.num_mel_bins)
        self.pad_to = pad_to
        self.precision = precision
        self.augment: Callable[[Tensor, Tensor], Tensor] | None = None
        self.recompute: Callable[[], AbstractContextManager] | None = None
        if precision != torch.float32:
            self._lower_precision()

    def _lower_precision(self) -> None:
        """Store matrices in ``precision`` and cast the output of layer norms once, not in each linear."""
        for module in self.model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):  # the token embedding is the output layer's matrix
                module.to(self.precision)
        for layer in (*self.encoder.layers, *self.decoder.layers):
            for module in layer.children():
                if isinstance(module, nn.LayerNorm):
                    module.register_forward_hook(lambda _norm, _inputs, output: output.to(self.precision))

    def autocast(self) -> AbstractContextManager:
        """Return the context in which the layers run in ``precision``."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.conv1.weight.device

    @property
    def encoder(self) -> nn.Module:
        """The encoder's modules in ``transformers``."""
        return self.model.model.encoder

    @property
    def decoder(self) -> nn.Module:
        """The decoder's modules in ``transformers``."""
        return self.model.model.decoder

    def input_samples(self, samples: int) -> int:
        """Return the length that the encoder processes for an utterance of ``samples`` samples."""
        return min(samples + self._silence, MAX_SAMPLES)

    def embed_speech(self, speech: Tensor, lengths: Tensor, fill: str | None = None) -> Encoded:
        """Compute the input of encoder layer 1, a state for every two mel frames.

        Args:
            speech: samples at 16 kHz, shape (B, S).
            lengths: samples of each utterance, shape (B,).
            fill: pad to 30 s instead of ``pad_to``, in one of the forms of ``FILLS``.

        Raises:
            ValueError: an utterance is shorter than 25 ms or longer than 30 s.
        """
        speech_frames = lengths // HOP
        silence = {"silence": MAX_SAMPLES, "zeros": 0}.get(fill, self._silence)
        if silence:
            speech, lengths = _append_silence(speech, lengths, silence)
        mel, frames = self.features(speech, lengths)
        if self.augment is not None and self.training:
            mel = self.augment(mel, speech_frames)
        if fill == "zeros":
            mel, frames = F.pad(mel, (0, MAX_FRAMES - mel.shape[-1])), torch.full_like(frames, MAX_FRAMES)
        return self.embed_mel(mel, frames)

    def embed_mel(self, mel: Tensor, frames: Tensor) -> Encoded:
        """Compute the input of encoder layer 1 from mel features (B, M, F) of ``frames`` (B,) frames each."""
        states = self.convolve(mel, length_mask(frames, mel.shape[-1]))
        lengths = (frames + 1) // 2
        mask = None if bool((lengths == states.shape[1]).all()) else length_mask(lengths, states.shape[1])
        return Encoded(states, mask)

    def convolve(self, mel: Tensor, mask: Tensor) -> Tensor:
        """Map mel features (B, M, F), mask (B, F) True for speech, to states with positions (B, T, D)."""
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

    def finish(self, x: Encoded, start: int = 0) -> Encoded:
        """Run encoder layers ``start + 1`` to the last, and the final norm."""
        x = self.encode_layers(x, start, len(self.encoder.layers))
        return Encoded(self.encoder.layer_norm(x.states).to(self.precision), x.mask)

    def encode(self, speech: Tensor, lengths: Tensor) -> Encoded:
        """Run the whole encoder on samples at 16 kHz, shape (B, S), of ``lengths`` (B,) samples each.

        Raises:
            ValueError: an utterance is shorter than 25 ms or longer than 30 s.
        """
        return self.finish(self.embed_speech(speech, lengths))

    def decode(self, tokens: Tensor, encoded: Encoded, cache: EncoderDecoderCache | None = None) -> Tensor:
        """Run the decoder.

        Args:
            tokens: token ids, padded at the right, shape (B, U); with a cache, only those that it does not hold yet
                (one at a time after the first call).
            encoded: states of the encoder.
            cache: keys and values of earlier tokens, extended in place.

        Returns:
            The decoder's last hidden states, shape (B, U, D).
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)  # (U,)
        mask = None  # causal over the given tokens; a single new token attends to all earlier ones
        if cache is not None:
            positions = positions + cache.get_seq_length()
        if isinstance(cache, FixedCache):
            mask = (torch.arange(cache.room, device=tokens.device) <= positions[:, None])[None, None]  # (1, 1, U, room)
        states = self.decoder.embed_tokens(tokens) + self.decoder.embed_positions.weight[positions]
        options = {
            "encoder_attention_mask": encoded.attention_mask,
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        with self.autocast():
            for layer in self.decoder.layers:
                states = self._run(layer, states, mask, encoded.states, **options)
        return self.decoder.layer_norm(states)

    def _run(self, layer: nn.Module, *inputs: Tensor | None, **options: Any) -> Tensor:
        """Run a layer, with activation checkpointing if ``recompute`` is set."""
        if self.recompute is None or not torch.is_grad_enabled():
            return run_layer(layer, *inputs, **options)
        contexts = nullcontext(), self.recompute()
        return checkpoint(run_layer, layer, *inputs, use_reentrant=False, context_fn=lambda: contexts, **options)

    def logits(self, states: Tensor) -> Tensor:
        """Map hidden states of the decoder (..., D) to logits over the vocabulary (..., V)."""
        with self.autocast():
            return self.model.proj_out(states)

    @contextmanager
    def record(self, layers: Mapping[Any, nn.Module]) -> Iterator[dict[Any, Tensor]]:
        """Within the context, put the output of each of these layers, shape (B, T, D), under its key as it runs."""
        states: dict[Any, Tensor] = {}
        hooks = [
            layer.register_forward_hook(
                lambda _layer, _inputs, output, key=key: states.update({key: states_of(output)})
            )
            for key, layer in layers.items()
        ]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def new_cache(self, room: int | None = None) -> EncoderDecoderCache:
        """Return an empty cache for ``decode``: one that grows, or one of fixed memory for ``room`` positions."""
        if room is None:
            return EncoderDecoderCache(DynamicCache(), DynamicCache())
        return FixedCache(len(self.decoder.layers), room)

    def save(self, folder: Path) -> None:
        """Write weights and configuration as ``transformers`` does, with the training's padding in ``config.json``."""
        self.model.save_pretrained(folder)
        file = folder / "config.json"
        config = json.loads(file.read_text()) | {"pad_to": self.pad_to, "share_30s": self.share_30s}
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def run_layer(layer: nn.Module, *inputs: Tensor | None, **options: Any) -> Tensor:
    """Run a layer of ``transformers``; version 4 gives a layer of the encoder a mask of heads, too."""
    if HEAD_MASKS and isinstance(layer, WhisperEncoderLayer):
        options["layer_head_mask"] = None
    return states_of(layer(*inputs, **options))


def states_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the states that a layer puts out, in version 4 of ``transformers`` as the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def silence_samples(pad_to: str) -> int:
    """Return the samples of silence after an utterance; those beyond 30 s are cut."""
    if pad_to == "30s":
        return MAX_SAMPLES
    match = re.fullmatch(r"none|\+(\d+(?:\.\d+)?)s", pad_to)
    if match is None:
        raise ValueError(f"expected pad_to: none, +<seconds>s such as +1s, or 30s, got {pad_to!r}")
    return round(float(match[1] or 0) * SAMPLE_RATE)


def _append_silence(speech: Tensor, lengths: Tensor, silence: int) -> tuple[Tensor, Tensor]:
    """Append ``silence`` samples to each utterance, up to 30 s: samples (B, S'), lengths (B,)."""
    check_lengths(lengths)
    speech = speech * length_mask(lengths, speech.shape[1])
    lengths = (lengths + silence).clamp(max=MAX_SAMPLES)
    return F.pad(speech, (0, int(lengths.max()) - speech.shape[1])), lengths

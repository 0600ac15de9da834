"""The published sizes of Whisper, known without a network, and the configuration of any size."""

from __future__ import annotations

from typing import NamedTuple

from transformers import WhisperConfig

END = 50257
"""``<|endoftext|>`` of every multilingual checkpoint."""


class Size(NamedTuple):
    """Dimensions of a multilingual Whisper, whose encoder and decoder are equally wide."""

    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    mels: int = 80
    vocab: int = 51865

    def config(self, frames: int = 1500, tokens: int = 448) -> WhisperConfig:
        """Return the configuration for ``frames`` positions of the encoder and ``tokens`` of the decoder."""
        return WhisperConfig(
            d_model=self.width,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            encoder_attention_heads=self.heads,
            decoder_attention_heads=self.heads,
            encoder_ffn_dim=4 * self.width,
            decoder_ffn_dim=4 * self.width,
            num_mel_bins=self.mels,
            vocab_size=self.vocab,
            max_source_positions=frames,
            max_target_positions=tokens,
            bos_token_id=END,
            eos_token_id=END,
            pad_token_id=END,
            decoder_start_token_id=END + 1,
        )


SIZES = {
    "openai/whisper-tiny": Size(384, 6, 4, 4),
    "openai/whisper-base": Size(512, 8, 6, 6),
    "openai/whisper-small": Size(768, 12, 12, 12),
    "openai/whisper-medium": Size(1024, 16, 24, 24),
    "openai/whisper-large": Size(1280, 20, 32, 32),
    "openai/whisper-large-v2": Size(1280, 20, 32, 32),
    "openai/whisper-large-v3": Size(1280, 20, 32, 32, mels=128, vocab=51866),
    "openai/whisper-large-v3-turbo": Size(1280, 20, 32, 4, mels=128, vocab=51866),
}
"""Hub name of each published checkpoint -> its dimensions (the table of openai/whisper's model card)."""

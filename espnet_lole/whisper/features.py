"""Whisper's log-mel spectrogram for a batch of utterances of any length, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000
WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
MAX_SAMPLES = 30 * SAMPLE_RATE
MIN_SAMPLES = WINDOW


class LogMel(nn.Module):
    """Log-mel spectrogram of a batch, as ``whisper.audio.log_mel_spectrogram`` computes it.

    Each utterance is reflected at its own ends and clamped 8 below its own maximum, so that its features do not depend
    on the other utterances of the batch.

    Args:
        num_mels: mel bins, 80 or 128 (large-v3).
    """

    def __init__(self, num_mels: int = 80) -> None:
        super().__init__()
        bank = mel_filter_bank(
            1 + WINDOW // 2, num_mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", torch.from_numpy(bank.T).float(), persistent=False)  # (M, 201)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    @torch.no_grad()
    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features.

        Args:
            speech: samples at 16 kHz in [-1, 1], shape (B, S); samples after an utterance's length are ignored.
            lengths: samples of each utterance, shape (B,).

        Returns:
            Features, shape (B, M, F), zero in padded frames, and the frames of each utterance, shape (B,).

        Raises:
            ValueError: an utterance is shorter than 25 ms or longer than 30 s.
        """
        check_lengths(lengths)
        with torch.autocast(speech.device.type, enabled=False):
            padded = _reflect_ends(speech.float()[:, : int(lengths.max())], lengths)
            spectrum = torch.stft(padded, WINDOW, HOP, window=self.window, center=False, return_complex=True)
            frames = lengths // HOP
            spectrum = spectrum[..., : int(frames.max())]  # (B, 201, F)
            log_mel = (self.filters @ spectrum.abs().square()).clamp(min=1e-10).log10()  # (B, M, F)
            valid = length_mask(frames, log_mel.shape[-1])[:, None]  # (B, 1, F)
            peak = log_mel.masked_fill(~valid, -torch.inf).amax(dim=(1, 2), keepdim=True)
            log_mel = (torch.maximum(log_mel, peak - 8.0) + 4.0) / 4.0
        return log_mel * valid, frames


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return a mask (B, size), True at the first ``lengths`` (B,) positions."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def check_lengths(lengths: Tensor) -> None:
    """Refuse utterances that Whisper cannot take.

    Raises:
        ValueError: an utterance is shorter than 25 ms or longer than 30 s.
    """
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < MIN_SAMPLES or longest > MAX_SAMPLES:
        wrong = shortest if shortest < MIN_SAMPLES else longest
        raise ValueError(
            f"expected utterances of {MIN_SAMPLES} to {MAX_SAMPLES} samples (25 ms to 30 s at 16 kHz), got one of "
            f"{wrong}: remove it, or split it before it comes here"
        )


def _reflect_ends(speech: Tensor, lengths: Tensor) -> Tensor:
    """Mirror half a window of samples at both ends of each utterance, shape (B, S + 400)."""
    half = WINDOW // 2
    position = torch.arange(-half, speech.shape[1] + half, device=speech.device).abs()
    last = lengths[:, None] - 1
    mirrored = torch.where(position > last, 2 * last - position, position)  # (B, S + 400)
    return speech.gather(1, mirrored.clamp(min=0))

"""Room acoustics and noise for synthetic speech."""

from __future__ import annotations

import numpy as np
from scipy.signal import fftconvolve

SAMPLE_RATE = 16_000


def reverberate(speech: np.ndarray, rng: np.random.Generator, decay: float, wet: float) -> np.ndarray:
    """Add the reflections of a room: convolve with exponentially decaying noise.

    Args:
        speech: samples (T,).
        rng: random generator of the room.
        decay: reverberation time (decay by 60 dB), in seconds.
        wet: energy of the reflections relative to the direct sound.

    Returns:
        Samples (T,).
    """
    taps = int(decay * SAMPLE_RATE)
    tail = rng.standard_normal(taps) * np.exp(-6.9 * np.arange(taps) / taps)
    tail *= np.sqrt(wet / np.sum(tail**2))
    tail[0] = 1.0
    return fftconvolve(speech, tail)[: len(speech)]


def coloured_noise(length: int, rng: np.random.Generator, slope: float) -> np.ndarray:
    """Generate noise (length,) of unit power and spectrum `1 / f ** slope` (0 white, 1 pink, 2 brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1 + length // 400) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, length)
    return noise / np.sqrt(np.mean(noise**2))


def add_noise(speech: np.ndarray, rng: np.random.Generator, snr: float, slope: float) -> np.ndarray:
    """Add coloured noise to speech (T,) at a signal-to-noise ratio in dB, then scale the peak to 0.5."""
    power = np.mean(speech**2)
    noisy = speech + coloured_noise(len(speech), rng, slope) * np.sqrt(power * 10 ** (-snr / 10))
    return (0.5 / np.max(np.abs(noisy)) * noisy).astype(np.float32)

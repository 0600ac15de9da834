"""Samples of any type, layout and scale become mono float32 in [-1, 1], or are refused with the reason."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

MAX_CHANNELS = 32
RATES = (1000, 768_000)
"""Lowest and highest sampling rate of audio in Hz."""
MAX_PEAK = 8.0
"""Floating-point audio may exceed full scale by 18 dB; beyond, it has another scale."""
INT16 = 32768.0


class AudioError(ValueError):
    """Audio cannot be used; the message is the reason, `kind: detail`."""


def to_mono(samples: Any, name: str = "samples") -> np.ndarray:
    """Convert samples to mono float32 in [-1, 1].

    Args:
        samples: an array, a tensor or a list of shape (S,), (S, channels) or (channels, S), of floating-point numbers
            in [-1, 1] or with the values of 16-bit audio; of uint8, int8, int16 or int32 as in WAV files; or of int64
            with the values of 16-bit audio.
        name: what the samples are, for messages.

    Returns:
        The average over the channels, float32 (S,); floating-point samples may exceed [-1, 1] by 18 dB.

    Raises:
        AudioError: the samples are empty, not numbers or not finite, or their channels or their scale are unclear.
    """
    array = _to_array(samples, name)
    scale, zero = _scale(array, name)
    if array.ndim == 1 and array.dtype == np.float32 and scale == 1:
        return np.ascontiguousarray(array)
    exact = np.float32 if array.dtype.itemsize <= 2 else np.float64
    mono = array if array.ndim == 1 else array.mean(axis=_channel_axis(array.shape, name), dtype=np.float64)
    return ((mono.astype(exact, copy=False) - exact(zero)) / exact(scale)).astype(np.float32, copy=False)


def _to_array(samples: Any, name: str) -> np.ndarray:
    """Return samples as a numeric array of one or two dimensions."""
    try:
        array = np.asarray(samples.detach().cpu() if hasattr(samples, "detach") else samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(f"no samples: {name}: expected an array of numbers, got {type(samples).__name__}") from error
    if array.ndim not in (1, 2) or array.dtype.kind not in "iuf":
        raise AudioError(
            f"no samples: {name}: expected samples of shape (S,), (S, channels) or (channels, S), "
            f"got {type(samples).__name__} of {array.dtype} and shape {array.shape}"
        )
    if not array.size:
        raise AudioError(f"no samples: {name}: the audio is empty")
    return array


def _channel_axis(shape: tuple[int, int], name: str) -> int:
    """Find the axis of the channels: the only one that is short enough."""
    short = [axis for axis in (0, 1) if shape[axis] <= MAX_CHANNELS]
    if len(short) == 1 or shape == (1, 1):
        return short[0]
    raise AudioError(
        f"unclear channels: {name}: samples of shape {shape} may be (channels, S) or (S, channels), with up to "
        f"{MAX_CHANNELS} channels; give the average over the channels, of shape (S,)"
    )


def full_scale(dtype: np.dtype) -> tuple[float, float]:
    """Return the values of full scale and of silence in WAV files of this type."""
    if dtype.kind == "f":
        return 1.0, 0.0
    return (128.0, 128.0) if dtype == np.uint8 else (-float(np.iinfo(dtype).min), 0.0)


def _scale(array: np.ndarray, name: str) -> tuple[float, float]:
    """Find the values of full scale and of silence."""
    low, high = float(array.min()), float(array.max())
    peak = max(-low, high)
    if array.dtype.kind == "f":
        if not math.isfinite(peak):
            raise AudioError(f"not finite: {name}: the samples contain NaN or infinity")
        return float_scale(peak, peak <= 1 or bool((array == np.rint(array)).all()), name), 0.0
    if array.dtype in (np.uint8, np.int8, np.int16) or (array.dtype == np.int32 and (peak > INT16 or not peak)):
        return full_scale(array.dtype)
    if array.dtype == np.int64 and peak <= INT16:
        return INT16, 0.0
    raise AudioError(
        f"unclear scale: {name}: {array.dtype} samples with a peak of {peak:.0f} have no certain full scale; "
        "convert them to int16, or to floating-point numbers in [-1, 1]"
    )


def float_scale(peak: float, integers: bool, name: str) -> float:
    """Return the value of full scale of floating-point samples.

    Args:
        peak: the largest absolute value.
        integers: whether all samples are whole numbers; of no account up to a peak of 1.
        name: what the samples are, for messages.

    Raises:
        AudioError: they are neither in [-1, 1], give or take MAX_PEAK, nor have the values of 16-bit audio.
    """
    if peak <= 1 or (peak <= MAX_PEAK and not integers):
        return 1.0
    if peak <= INT16 and (integers or peak > 256):
        return INT16
    raise AudioError(
        f"unclear scale: {name}: floating-point samples with a peak of {peak:g} are neither in [-1, 1] nor 16-bit "
        "values; divide them by the value of full scale"
    )


def check_rate(rate: Any, name: str = "samples") -> int | float:
    """Return a sampling rate as a number of Python.

    Raises:
        AudioError: it is not a number from 1000 to 768000.
    """
    try:
        number = float("nan") if isinstance(rate, str | bytes | bool | np.bool_) else float(rate)
    except (TypeError, ValueError):
        number = float("nan")
    if not RATES[0] <= number <= RATES[1]:
        raise AudioError(f"no sampling rate: {name}: expected {RATES[0]} to {RATES[1]} Hz, got {rate!r}")
    return int(number) if number == int(number) else number

"""Samples become mono float32 in [-1, 1], or are refused in words."""

import os
from collections import Counter

import numpy as np
import pytest
import torch

from espnet_lole.data.inputs import read_input
from espnet_lole.data.samples import AudioError, check_rate, to_mono

FUZZ = int(os.environ.get("LOLE_FUZZ", "300"))
"""Number of generated inputs."""
SPEECH = np.sin(np.arange(4000) / 7.0) * np.linspace(0, 0.9, 4000)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero"),
    [("int8", 128, 0), ("uint8", 128, 128), ("int16", 2**15, 0), ("int32", 2**31, 0), ("int64", 2**15, 0)],
)
def test_integers_have_the_scale_of_wav_files(dtype, scale, zero):
    samples = np.rint(SPEECH * scale + zero).astype(dtype)
    np.testing.assert_allclose(to_mono(samples), SPEECH, atol=0.6 / scale + 1e-7)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floating_point_samples_at_16_bit_scale_are_scaled_and_louder_than_full_scale_ones_are_not(dtype):
    values = np.rint(SPEECH * 32768)
    np.testing.assert_allclose(to_mono(values.astype(dtype)), SPEECH, atol=2e-3 if dtype == "float16" else 2e-5)
    np.testing.assert_allclose(to_mono((2.5 * SPEECH).astype(dtype)), 2.5 * SPEECH, atol=1e-3)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, lambda a: torch.from_numpy(a).requires_grad_()])
def test_channels_are_averaged_in_either_layout(make):
    stereo = np.stack([SPEECH, np.zeros(4000)])
    for layout in (stereo, stereo.T):
        np.testing.assert_allclose(to_mono(make(layout.copy())), SPEECH / 2, atol=1e-7)
    for layout in (SPEECH[None], SPEECH[:, None]):
        np.testing.assert_allclose(to_mono(make(layout.copy())), SPEECH, atol=1e-7)


def test_no_precision_is_lost_where_float32_has_it():
    values = np.array([2**31 - 2**7, -(2**31), 3 * 2**10, 2**16], dtype=np.int32)
    np.testing.assert_array_equal(to_mono(values), (values / 2.0**31).astype(np.float32))
    quiet = (SPEECH * 1e-9).astype(np.float32)
    assert to_mono(quiet) is quiet
    np.testing.assert_array_equal(to_mono(SPEECH), SPEECH.astype(np.float32))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([0.1, float("nan")], "not finite: it: the samples contain NaN or infinity"),
        (np.array([0.1, -np.inf], dtype=np.float32), "not finite: it: "),
        (np.zeros((2, 2)), r"unclear channels: it: samples of shape \(2, 2\) may be"),
        (np.zeros((100, 200)), "unclear channels: it: "),
        (np.zeros((1, 2, 400)), r"no samples: it: .* \(channels, S\), got ndarray of float64 and shape"),
        (np.zeros(0), "no samples: it: the audio is empty"),
        (np.ones(9, dtype=bool), "no samples: it: expected samples"),
        (np.ones(9, dtype=complex), "no samples: it: expected samples"),
        (["a", "b"], "no samples: it: expected samples"),
        ([[0.1], [0.1, 0.2]], "no samples: it: expected an array of numbers, got list"),
        (0.5, "no samples: it: expected samples"),
        (None, "no samples: it: expected samples"),
        (np.arange(9, dtype=np.int32), "unclear scale: it: int32 samples with a peak of 8 have no certain full scale"),
        (np.array([1, 40_000]), "unclear scale: it: int64 samples with a peak of 40000"),
        (np.arange(9, dtype=np.uint16), "unclear scale: it: uint16 samples"),
        (np.array([0.1, 9.5]), "unclear scale: it: floating-point samples with a peak of 9.5 are neither"),
        (np.array([0.0, 8e6]), "unclear scale: it: floating-point samples with a peak of 8e\\+06"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_refused(samples, message):
    with pytest.raises(AudioError, match=message):
        to_mono(samples, "it")


def test_rates_are_numbers_of_any_library():
    for rate in (16000, np.int64(16000), 16000.0, torch.tensor(16000), np.array(16000)):
        assert check_rate(rate) == 16000 and isinstance(check_rate(rate), int)
    assert check_rate(11025.5) == 11025.5
    for rate in ("16000", True, None, 0, -8000, 16, float("nan"), 1e9, [16000, 8000]):
        with pytest.raises(AudioError, match="no sampling rate: it: expected 1000 to 768000 Hz, got"):
            check_rate(rate, "it")


def generate(random: np.random.Generator) -> tuple[object, np.ndarray | None]:
    """Generate samples of any type, layout and scale; the mono samples that they mean, or None if they have none."""
    length, channels = int(random.choice([0, 2, 500, 3000, 3000])), int(random.choice([1, 1, 2, 3, 6]))
    level = float(random.choice([1e-6, 1e-2, 0.1, 0.5, 0.99]))
    wave = level * random.uniform(-1, 1, (length, channels))
    dtype = str(random.choice(["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64"]))
    full = {"int8": 128, "uint8": 128, "int16": 2**15, "int32": 2**31, "int64": 2**15}.get(dtype, 1)
    if length > 2 and (dtype[0] == "f" and random.random() < 0.3) or (dtype == "int32" and random.random() < 0.4):
        full, wave = 2**15, wave * max(1, 1e-3 / level)
    values = wave * full
    values = np.rint(values) if dtype[0] != "f" or random.random() < 0.5 else values
    values = (values + 128 * (dtype == "uint8")).astype(dtype)
    meant = (values.astype(np.float64) - 128 * (dtype == "uint8")).mean(axis=1) / full
    if length and dtype[0] == "f" and random.random() < 0.2:
        values[random.integers(length), 0] = random.choice([np.nan, np.inf, -np.inf])
        meant = None
    layout = random.choice(["flat", "columns", "rows"]) if channels == 1 else random.choice(["columns", "rows"])
    made = {"flat": values[:, 0], "columns": values, "rows": values.T}[str(layout)]
    forgetful = dtype in ("int8", "uint8", "int32")  # a list forgets the type, and with it the scale
    kind = random.choice(["numpy", "torch"] if forgetful else ["numpy", "torch", "list"])
    samples = torch.from_numpy(made.copy()) if kind == "torch" else made.tolist() if kind == "list" else made
    return samples, meant


def test_generated_samples_are_what_they_mean_or_refused():
    random, counts, wrong = np.random.default_rng(0), Counter(), []
    for number in range(FUZZ):
        samples, meant = generate(random)
        rate = random.choice([16000, 8000, 44100])
        forms = [(samples, rate), (rate, samples), {"array": samples, "sampling_rate": rate, "path": None}]
        try:
            read = np.concatenate(list(read_input(forms[number % 3], "it")))
        except AudioError as error:
            assert ": it: " in str(error)
            counts["refused"] += 1
            continue
        if rate != 16000 or meant is None:
            counts["other rate" if meant is not None else "wrong"] += 1
            right = meant is not None and abs(len(read) - len(meant) * 16000 / rate) <= 1
        else:
            right = len(read) == len(meant) and np.abs(read - meant).max() < 1e-3
            counts["right" if right else "wrong"] += 1
        if not right:
            kind = getattr(samples, "dtype", "list"), np.shape(samples), rate
            wrong.append(
                f"{number}: {kind}: {np.abs(read).max()} instead of {meant is not None and np.abs(meant).max()}"
            )
    print(dict(counts))
    assert not wrong, "\n".join(wrong)

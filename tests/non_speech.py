"""Sounds without speech: noises, tones, clicks, hums and music of many levels and lengths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RATE = 16_000
Random = np.random.Generator


def coloured(random: Random, samples: int, exponent: float) -> np.ndarray:
    """Noise whose power falls with this power of the frequency: 0 is white, 1 pink, 2 brown."""
    frequencies = np.fft.rfftfreq(samples, 1 / RATE)
    frequencies[0] = frequencies[1]
    return np.fft.irfft(np.fft.rfft(random.standard_normal(samples)) * frequencies ** (-exponent / 2), samples)


def tone(random: Random, samples: int) -> np.ndarray:
    return np.sin(2 * np.pi * random.uniform(50, 7000) / RATE * np.arange(samples))


def hum(random: Random, samples: int) -> np.ndarray:
    """Mains hum with its harmonics."""
    phase = 2 * np.pi * random.choice([50, 60]) / RATE * np.arange(samples)
    return sum(np.sin(k * phase + random.uniform(0, 6)) * random.random() / k for k in range(1, 20))


def repeat(sound: np.ndarray, samples: int, period: int) -> np.ndarray:
    made = np.zeros(samples)
    for start in range(0, samples, period):
        made[start : start + len(sound)] += sound[: samples - start]
    return made


def clicks(random: Random, samples: int) -> np.ndarray:
    """Keys of a keyboard, a clock, or drips."""
    length = int(random.integers(20, 800))
    click = random.standard_normal(length) * np.exp(-np.arange(length) / (length / 5))
    return repeat(click, samples, int(RATE / random.uniform(1, 20)))


def pulses(random: Random, samples: int) -> np.ndarray:
    """An engine, with the rate of a voice."""
    return repeat(np.ones(1), samples, int(RATE / random.uniform(60, 400)))


def siren(random: Random, samples: int) -> np.ndarray:
    sweep = np.sin(2 * np.pi * random.uniform(0.1, 3) / RATE * np.arange(samples))
    return np.sin(2 * np.pi * np.cumsum(random.uniform(500, 1500) + 400 * random.random() * sweep) / RATE)


def drums(random: Random, samples: int) -> np.ndarray:
    time = np.arange(RATE // 6) / RATE
    kick = np.sin(2 * np.pi * (60 + 80 * np.exp(-40 * time)) * time) * np.exp(-20 * time)
    snare = random.standard_normal(len(time)) * np.exp(-30 * time)
    period = int(random.uniform(0.2, 0.5) * RATE)
    made = repeat(kick, samples, 2 * period)
    made[period:] += repeat(snare, samples, 2 * period)[:-period]
    return made


def chords(random: Random, samples: int) -> np.ndarray:
    """Plucked chords of a piano."""
    made, start = np.zeros(samples), 0
    while start < samples:
        time = np.arange(int(random.uniform(0.2, 1) * RATE)) / RATE
        for pitch in 220 * 2 ** (random.choice([0, 2, 4, 5, 7, 9, 11, 12], 3) / 12):
            note = sum(np.sin(2 * np.pi * pitch * k * time) / k**1.5 for k in range(1, 6))
            made[start : start + len(time)] += (note * np.exp(-3 * time))[: samples - start]
        start += len(time)
    return made


def gusts(random: Random, samples: int) -> np.ndarray:
    """Noise that swells at the rate of syllables."""
    swell = 1 + np.sin(2 * np.pi * random.uniform(1, 8) / RATE * np.arange(samples))
    return coloured(random, samples, random.uniform(0, 2)) * swell


KINDS: dict[str, Callable[[Random, int], np.ndarray]] = {
    "silence": lambda random, samples: np.zeros(samples),
    "offset": lambda random, samples: np.ones(samples),
    "white noise": lambda random, samples: coloured(random, samples, 0),
    "pink noise": lambda random, samples: coloured(random, samples, 1),
    "brown noise": lambda random, samples: coloured(random, samples, 2),
    "tone": tone, "hum": hum, "clicks": clicks, "pulses": pulses, "siren": siren, "drums": drums, "chords": chords,
    "gusts": gusts,
}  # fmt: skip


def make_sound(kind: str, random: Random) -> np.ndarray:
    """Make 0.3 to 8 s of a kind of sound, at -60 to 0 dB, with or without quiet noise; float32, shape (S,)."""
    samples = int(random.uniform(0.3, 8) * RATE)
    sound = KINDS[kind](random, samples)
    sound = sound / max(np.abs(sound).max(), 1e-9) * 10 ** random.uniform(-3, 0)
    if kind != "silence" or random.random() < 0.5:
        sound = sound + random.standard_normal(samples) * 10 ** random.uniform(-4, -2)
    return np.clip(sound, -1, 1).astype(np.float32)

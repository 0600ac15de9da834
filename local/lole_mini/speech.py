"""Utterances of the synthetic corpora, deterministic for a domain, a set and a language."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.signal import resample_poly

from lole_mini.acoustics import SAMPLE_RATE, add_noise, reverberate
from lole_mini.sentences import sentences
from lole_mini.voices import Speaker, synthesizer

VARIANTS = {
    "backbone": (
        "f1 f2 f4 m1 m3 m5 m7 klatt klatt3 Andrea Alicia Denis Mario boris linda paul rob steph victor zac "
        "grandpa grandma michel david Gene edward gustave Andy"
    ).split(),
    "train": (
        "f3 m2 m4 klatt2 Annie Diogo ed marcelo belinda quincy iven3 Lee Alex Marco Michael Mike adam antonio benjamin "
        "caleb iven2 john klatt5 max miguel pedro robert sandro travis Hugo "
        "robosoft Jacky announcer croak fast ian iven iven4 kaukovalta klatt6 Reed Storm Tweaky Nguyen AnxiousAndy"
    ).split(),
    "dev": "f5 m6 Henrique shelby".split(),
    "test": "m8 klatt4 aunty norbert pablo anika".split(),
}
"""eSpeak's voice variants for each set; no variant is in two sets."""


@dataclass(frozen=True)
class Conditions:
    """Ranges of the recording conditions of a domain."""

    rate: tuple[int, int]  # words per minute
    snr: tuple[float, float]  # dB
    wet: tuple[float, float]  # energy of the reflections relative to the direct sound
    decay: tuple[float, float]  # reverberation time in seconds


CONDITIONS = {
    "atlas": Conditions(rate=(130, 190), snr=(12.0, 40.0), wet=(0.0, 0.3), decay=(0.1, 0.4)),
    "market": Conditions(rate=(150, 200), snr=(12.0, 28.0), wet=(0.1, 0.4), decay=(0.2, 0.5)),
}


@dataclass(frozen=True)
class Utterance:
    """A spoken sentence: name of the speaker, text, and samples at 16 kHz, float32 (T,)."""

    speaker: str
    text: str
    speech: np.ndarray


def utterances(domain: str, split: str, lang: str, texts: list[str], speakers: int) -> Iterator[Utterance]:
    """Speak the texts, each in the voice of one of the set's speakers.

    Args:
        domain: `atlas` or `market`, for the recording conditions.
        split: the set, for the voice variants.
        lang: language code.
        texts: the texts to speak.
        speakers: number of speakers who share the texts.

    Yields:
        One utterance per text, speaker by speaker.
    """
    seed = int.from_bytes(hashlib.sha256(f"{domain} {split} {lang}".encode()).digest()[:8], "big")
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    conditions, voice = CONDITIONS[domain], synthesizer()
    cast = [_speaker(rng, VARIANTS[split][i % len(VARIANTS[split])], conditions) for i in range(speakers)]
    for i, speaker in enumerate(cast):
        for text in islice(texts, i, None, speakers):
            clean = resample_poly(voice.speak(text, lang, speaker), SAMPLE_RATE, voice.sample_rate)
            room = reverberate(clean, noise, rng.uniform(*conditions.decay), rng.uniform(*conditions.wet))
            noisy = add_noise(room, noise, rng.uniform(*conditions.snr), rng.uniform(0.0, 2.0))
            yield Utterance(f"{speaker.variant}{i}", text, noisy)


def _speaker(rng: random.Random, variant: str, conditions: Conditions) -> Speaker:
    """Draw the rate and pitch of a speaker."""
    return Speaker(variant, rng.randint(*conditions.rate), rng.randint(30, 70), rng.randint(30, 70))


def split_texts(domain: str, lang: str, sizes: dict[str, int], seed: int = 0) -> dict[str, list[str]]:
    """Draw `sizes[set]` sentences for each set, none in two sets."""
    source = sentences(domain, lang, seed)
    return {split: list(islice(source, size)) for split, size in sizes.items()}

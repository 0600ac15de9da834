"""Generated samples and damaged audio files: read as they were written, or refused; never wrong in silence."""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
from audio_files import FFMPEG, RATES, SOUNDFILE, encode, loudness, speech_like

from espnet_lole.data.reading import read_file
from espnet_lole.data.samples import AudioError

FUZZ = int(os.environ.get("LOLE_FUZZ", "60"))
"""Number of generated inputs of each kind."""
KINDS = [*SOUNDFILE, *FFMPEG]
NO_LENGTH = {"aac", "amr", "ac3", "mp2", "mpegts", "live webm", "fragmented"}
"""Formats whose files do not tell how long they are: of a cut file, what is there is read."""


@cache
def make(kind: str, seed: int) -> tuple[bytes, np.ndarray, int]:
    """Encode 0.4 to 2.5 s: the file, the samples and their rate."""
    rate = RATES.get(kind, 16000)
    samples = speech_like(0.4 + 0.3 * seed, rate, seed)
    return encode(kind, samples, rate, 1 if kind in ("amr", "3gp") else 1 + seed % 2), samples, rate


def damage(random: np.random.Generator, kind: str, how: str) -> tuple[bytes, list[np.ndarray], int]:
    """Make a file and damage it: its bytes, the samples that were written, part by part, and their rate."""
    whole, samples, rate = make(kind, int(random.integers(8)))
    if how == "cut":
        return whole[: random.integers(1, len(whole))], [samples], rate
    if how == "joined":
        other, more, _ = make(kind, int(random.integers(8)))
        return whole + other, [samples, more], rate
    if how == "flipped":
        raw = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            raw[random.integers(min(len(raw), 128))] ^= 1 << random.integers(8)
        return bytes(raw), [samples], rate
    return whole, [samples], rate


def is_prefix(read: np.ndarray, written: np.ndarray, read_rate: int, rate: int) -> bool:
    """Check that what was read begins as what was written, give or take a shift of 0.15 s."""
    got, expected = loudness(read, read_rate), loudness(written, rate)
    size = min(len(got), len(expected)) - 3
    if size < 7:
        return True
    return any(np.median(np.abs(got[3 + shift : size + shift] - expected[3:size])) < 0.03 for shift in range(-3, 4))


def test_damaged_files_are_read_as_they_were_written_or_refused_with_their_name(tmp_path: Path) -> None:
    random, counts = np.random.default_rng(0), Counter()
    wrong = []
    for number in range(FUZZ):
        kind, how = KINDS[number % len(KINDS)], str(random.choice(["whole", "cut", "joined", "flipped"]))
        raw, written, rate = damage(random, kind, how)
        file = tmp_path / f"{number}.bin"
        file.write_bytes(raw)
        try:
            samples, read_rate = read_file(str(file))
        except AudioError as error:
            assert str(file) in str(error), error
            if how == "whole":
                wrong.append((number, kind, how, str(error)))
            counts[how, "refused"] += 1
            continue
        finally:
            file.unlink()
        seconds, expected = len(samples) / read_rate, sum(map(len, written)) / rate
        expected *= rate / read_rate if kind == "aiff" and how == "flipped" else 1  # AIFF states its rate only once
        short = how == "cut" and kind in NO_LENGTH
        right = seconds < expected + 0.2 if short else abs(seconds - expected) < 0.2 * len(written)
        right = right and is_prefix(samples, np.concatenate(written), read_rate, rate)
        counts[how, "right" if right else "wrong"] += 1
        if not right:
            wrong.append((number, kind, how, f"{seconds:.2f} of {expected:.2f} s at {read_rate} Hz"))
    print(sorted(counts.items()))
    assert not wrong, "\n".join(map(str, wrong))

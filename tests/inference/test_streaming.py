import numpy as np
import pytest
import torch

from espnet_lole.data.samples import AudioError
from espnet_lole.inference import streaming
from espnet_lole.inference.batching import Audio
from espnet_lole.inference.results import Hypothesis
from espnet_lole.inference.streaming import Recording

RATE = 16_000


@pytest.fixture(scope="module")
def talk() -> np.ndarray:
    """Seven minutes of noise bursts with pauses of random lengths, some of minutes."""
    random = np.random.default_rng(0)
    parts = []
    while sum(map(len, parts)) < 420 * RATE:
        parts.append(random.normal(0, 0.1, random.integers(1, 20) * RATE))
        parts.append(random.normal(0, 1e-4, round(random.choice([0.2, 0.5, 45]) * RATE)))
    return np.concatenate(parts).astype(np.float32)


def loud(audio: Audio) -> list[Audio]:
    """Cut as a speech detector would: the silence is left out."""
    return [piece for piece in audio.pieces(8 * RATE) if piece.load().abs().max() > 0.01]


@pytest.mark.parametrize("cut", [Audio.pieces, lambda audio: audio.pieces(3 * RATE), loud])
@pytest.mark.parametrize("size", [70_001, 10_000_000])
def test_a_recording_that_is_cut_while_it_is_read_has_the_pieces_of_the_whole(talk, cut, size, monkeypatch):
    monkeypatch.setattr(streaming, "SECTION", 60 * RATE)
    whole = cut(Audio("talk", "de", 0, len(talk), lambda start, stop: torch.from_numpy(talk[start:stop])))
    recording = Recording("talk", "de")
    pieces = list(recording.read((talk[i : i + size] for i in range(0, len(talk), size)), cut))
    assert recording.num_samples == len(talk) and recording.waiting == pieces
    if cut is not loud:
        assert [(p.start, p.stop) for p in pieces] == [(p.start, p.stop) for p in whole]
    covered = np.zeros(len(talk), dtype=bool)
    for piece in pieces:
        assert torch.equal(piece.load(), torch.from_numpy(talk[piece.start : piece.stop])) and piece.id == "talk"
        assert not covered[piece.start : piece.stop].any()
        covered[piece.start : piece.stop] = True
    assert covered[np.abs(talk) > 0.01].all()


def test_samples_are_released_when_they_are_transcribed_and_while_nothing_is_said(monkeypatch):
    monkeypatch.setattr(streaming, "SECTION", 60 * RATE)
    held = []

    def nothing(audio: Audio) -> list[Audio]:
        held.append(audio.num_samples)
        return []

    recording = Recording("night", None)
    assert not list(recording.read((np.zeros(10 * RATE, dtype=np.float32) for _ in range(60)), nothing))
    assert recording.num_samples == 600 * RATE and max(held) <= 70 * RATE
    recording = Recording("talk", None)
    (piece,) = recording.read([np.ones(RATE, dtype=np.float32)], Audio.pieces)
    recording.add([Hypothesis([1], 0.0)])
    assert recording.waiting == [] and recording.pieces[0].read is None and piece.stop == recording.pieces[0].stop


def test_an_error_ends_a_recording():
    def blocks():
        yield np.ones(RATE, dtype=np.float32)
        raise AudioError("truncated: a.wav")

    recording = Recording("a.wav", None)
    assert not list(recording.read(blocks(), Audio.pieces))
    assert str(recording.error) == "truncated: a.wav" and not recording.waiting

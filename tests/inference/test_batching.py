import numpy as np
import pytest
import torch
from conftest import tiny_whisper

from espnet_lole.inference.batching import Audio, load_batches, make_batches, transcribe
from espnet_lole.inference.results import Hypothesis
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

RATE = 16_000


class LevelMeter:
    """A system whose hypothesis of an utterance is the sum of its samples; it records its batches."""

    tokenizer = WhisperTokenizer(51865)

    def __init__(self, pad_to: str = "none") -> None:
        self.whisper, self.batches = Whisper(tiny_whisper(), pad_to), []

    def __call__(self, speech, lengths, languages):
        self.batches.append((lengths.tolist(), languages))
        sums = speech.sum(1).round().int().tolist()
        languages = languages or ["xx"] * len(sums)
        return [Hypothesis([total], 0.0, language=lang) for total, lang in zip(sums, languages, strict=True)]


def audio(samples: int, language: str | None = None) -> Audio:
    ones = torch.ones(samples)
    return Audio(str(samples), language, 0, samples, lambda start, stop: ones[start:stop])


def test_batches_are_sorted_bounded_and_complete():
    samples = [RATE * seconds for seconds in (1, 5, 2, 9, 5)]
    assert make_batches(samples, 10) == [[3], [1, 4], [2, 0]]


@pytest.mark.parametrize(("pad_to", "sizes"), [("none", [3, 1]), ("+1s", [1, 1, 1, 1]), ("30s", [1, 1, 1, 1])])
def test_the_silence_that_a_whisper_appends_counts_in_a_batch(pad_to, sizes):
    utterances = [audio(n) for n in (16_000, 9_000, 12_000, 5_000)]
    batches = list(load_batches(utterances, Whisper(tiny_whisper(), pad_to), 3.0))
    assert [len(rows) for rows, _, _ in batches] == sizes
    rows, speech, lengths = batches[0]
    assert lengths.tolist() == [utterances[row].num_samples for row in rows]
    assert speech.sum(1).tolist() == lengths.tolist() and speech.shape == (len(rows), 16_000)


def test_known_and_unknown_languages_go_to_different_batches_and_come_back_in_order():
    system, seconds = LevelMeter(), []
    recordings = [[audio(500, "de"), audio(900)], [], [audio(700, "en")], [audio(600)]]
    decoded = transcribe(system, recordings, 10.0, seconds.append)
    assert [[(h.tokens, h.language) for h in hypotheses] for hypotheses in decoded] == [
        [([500], "de"), ([900], "xx")], [], [([700], "en")], [([600], "xx")]
    ]  # fmt: skip
    assert system.batches == [([700, 500], ["en", "de"]), ([900, 600], None)]
    assert seconds == [1200 / RATE, 1500 / RATE]
    short, long = decoded[3][0].decode_seconds, decoded[0][1].decode_seconds
    assert short > 0 and long / short == pytest.approx(900 / 600)


@pytest.mark.parametrize(("samples", "pieces"), [(399, 0), (400, 1), (480_000, 1), (480_001, 2), (1_000_000, 3)])
def test_pieces_cover_a_recording_and_whisper_takes_each(samples, pieces):
    recording = audio(samples, "de")
    parts = recording.pieces()
    assert len(parts) == pieces and sum(piece.num_samples for piece in parts) == (samples if pieces else 0)
    assert all(400 <= piece.num_samples <= 480_000 and piece.language == "de" for piece in parts)
    assert all(len(piece.load()) == piece.num_samples for piece in parts)


def test_a_piece_is_split_further_at_its_own_silence():
    samples = np.ones(6 * RATE, dtype=np.float32)
    samples[round(4.2 * RATE) : round(4.6 * RATE)] = 0  # 1.7 s after the start of the piece
    recording = Audio("talk", None, 0, len(samples), lambda start, stop: torch.from_numpy(samples[start:stop]))
    piece = Audio("talk", None, round(2.5 * RATE), 5 * RATE, recording.read)
    first, second = piece.pieces(2 * RATE)
    assert (first.start, second.stop) == (piece.start, piece.stop) and first.stop == second.start
    assert abs(first.stop - 4.4 * RATE) < RATE / 100


class Halves:
    """Hears speech in the second and the last quarter of a recording."""

    def spans(self, samples):
        quarter = len(samples) // 4
        return [(quarter, 2 * quarter), (3 * quarter, 4 * quarter)]


def test_pieces_have_speech_alone():
    recording = audio(8 * RATE, "de")
    assert [(p.start, p.stop) for p in recording.pieces(detector=Halves())] == [
        (2 * RATE, 4 * RATE), (6 * RATE, 8 * RATE)
    ]  # fmt: skip
    short = recording.pieces(RATE, Halves())
    assert len(short) >= 4 and all(p.num_samples <= RATE for p in short)
    assert sum(p.num_samples for p in short) == 4 * RATE and short[0].start == 2 * RATE


def test_pieces_of_31_seconds_are_refused():
    with pytest.raises(ValueError, match="pieces of 1 to 30 s at most can be transcribed, got 31 s"):
        audio(16_000).pieces(31 * RATE)

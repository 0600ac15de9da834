import numpy as np
import pytest

from espnet_lole.inference.longform import join, make_batches, split
from espnet_lole.inference.search import Hypothesis
from espnet_lole.inference.transcriber import Transcription
from lole_mini.speech import split_texts, utterances

RATE = 16_000


@pytest.fixture(scope="module")
def talk() -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Synthetic sentences one after another, half a second of quiet noise between them; first and last sample of each."""
    texts = split_texts("atlas", "de", {"test": 12})["test"]
    said = [u.speech for u in utterances("atlas", "test", "de", texts, 2)] * 3
    noise = np.random.default_rng(0).normal(0, 1e-4, RATE // 2).astype(np.float32)
    parts, where, position = [], [], 0
    for speech in said:
        parts += [speech, noise]
        where.append((position, position + len(speech)))
        position += len(speech) + len(noise)
    return np.concatenate(parts), where


@pytest.mark.parametrize("seconds", [10, 17, 30])
def test_pieces_cover_everything_and_are_cut_between_sentences(talk, seconds):
    speech, sentences = talk
    spans = split(speech, seconds * RATE)
    assert len(spans) >= 3 and spans[0][0] == 0 and spans[-1][1] == len(speech)
    for (_, stop), (start, _) in zip(spans, spans[1:], strict=False):
        assert stop == start
        assert not any(first < start < last for first, last in sentences)
    assert all(400 <= stop - start <= seconds * RATE for start, stop in spans)


def test_even_silence_is_cut_in_its_middle():
    speech = np.ones(35 * RATE, dtype=np.float32)
    speech[20 * RATE : 24 * RATE] = 0
    ((_, cut), _) = split(speech)
    assert abs(cut - 22 * RATE) < 160


@pytest.mark.parametrize(("samples", "pieces"), [(399, 0), (400, 1), (480_000, 1), (480_001, 2), (480_399, 2), (960_000, 2)])
def test_no_piece_is_too_short_or_too_long(samples, pieces):
    """Loud at the start: everything behind it is as quiet, up to the end."""
    speech = np.zeros(samples, dtype=np.float32)
    speech[: samples // 2] = 1
    spans = split(speech)
    assert len(spans) >= pieces and (len(spans) == pieces or pieces == 2)
    assert all(400 <= stop - start <= 480_000 for start, stop in spans)
    with pytest.raises(ValueError, match="expected pieces of 1 to 30 s at most, got 31 s"):
        split(speech, 31 * RATE)


def test_batches_are_sorted_bounded_and_whole():
    samples = [RATE * seconds for seconds in (1, 5, 2, 9, 5)]
    batches = make_batches(samples, 10)
    assert batches == [[3], [1, 4], [2, 0]]


def test_joining_is_the_mean_over_time():
    one = Transcription(Hypothesis([1, 2, 3], -0.5), "de", {"de": 0.9, "en": 0.1})
    two = Transcription(Hypothesis([4], -1.0), "en", {"de": 0.3, "en": 0.7})
    assert join([one], [RATE]) is one
    both = join([one, two], [RATE, 3 * RATE])
    assert both.hypothesis == Hypothesis([1, 2, 3, 4], pytest.approx((4 * -0.5 + 2 * -1.0) / 6))
    assert both.lang == "en" and both.posteriors == pytest.approx({"de": 0.45, "en": 0.55})
    assert both.confidence == pytest.approx(0.55)

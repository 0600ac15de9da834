import numpy as np
import pytest

from espnet_lole.inference.longform import join, split
from espnet_lole.inference.results import Hypothesis
from lole_mini.speech import split_texts, utterances

RATE = 16_000


@pytest.fixture(scope="module")
def talk() -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Synthetic sentences with half a second of quiet noise between them; first sample and end of each sentence."""
    texts = split_texts("atlas", "de", {"test": 12})["test"]
    sentences = [u.speech for u in utterances("atlas", "test", "de", texts, 2)] * 3
    noise = np.random.default_rng(0).normal(0, 1e-4, RATE // 2).astype(np.float32)
    parts, spans, position = [], [], 0
    for speech in sentences:
        parts += [speech, noise]
        spans.append((position, position + len(speech)))
        position += len(speech) + len(noise)
    return np.concatenate(parts), spans


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
    ((_, cut), _) = split(speech, 30 * RATE)
    assert abs(cut - 22 * RATE) < 160


@pytest.mark.parametrize(("samples", "pieces"), [(480_000, 1), (480_001, 2), (480_399, 2), (960_000, 2)])
def test_no_piece_is_too_short_or_too_long(samples, pieces):
    """Speech that is loud in its first half and silent up to its end."""
    speech = np.zeros(samples, dtype=np.float32)
    speech[: samples // 2] = 1
    spans = split(speech, 480_000)
    assert len(spans) >= pieces and (len(spans) == pieces or pieces == 2)
    assert all(400 <= stop - start <= 480_000 for start, stop in spans)


def test_joining_averages_over_time_and_tokens():
    one = Hypothesis([1, 2, 3], -0.5, False, "de", {"de": 0.9, "en": 0.1}, 0.5)
    two = Hypothesis([4], -1.0, True, "en", {"de": 0.3, "en": 0.7}, 0.25)
    assert join([one], [RATE]) is one
    both = join([one, two], [RATE, 3 * RATE])
    assert both.tokens == [1, 2, 3, 4] and both.score == pytest.approx((4 * -0.5 + 2 * -1.0) / 6)
    assert both.looped and both.decode_seconds == 0.75
    assert both.language == "en" and both.posteriors == pytest.approx({"de": 0.45, "en": 0.55})
    assert both.confidence == pytest.approx(0.55)

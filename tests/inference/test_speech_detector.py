import os

import numpy as np
import pytest
import torch
from non_speech import KINDS, make_sound

from espnet_lole.inference.speech_detector import SpeechDetector, VadConfig
from lole_mini.speech import split_texts, utterances

RATE = 16_000
FUZZ = int(os.environ.get("LOLE_FUZZ", "130"))


@pytest.fixture(scope="module")
def detector() -> SpeechDetector:
    return SpeechDetector(VadConfig())


@pytest.fixture(scope="module")
def sentences() -> list[np.ndarray]:
    """Synthetic sentences in two languages."""
    made = []
    for lang in ("de", "zh"):
        texts = split_texts("atlas", lang, {"test": 6})["test"]
        made += [u.speech for u in utterances("atlas", "test", lang, texts, 2)]
    return made


def test_sounds_without_speech_have_none(detector):
    """One in a hundred may be taken for speech: chords and tones may be sung."""
    random, kinds = np.random.default_rng(0), sorted(KINDS)
    heard = [kind for i in range(FUZZ) if detector.spans(make_sound(kind := kinds[i % len(kinds)], random))]
    print(f"{len(heard)} of {FUZZ} sounds without speech taken for speech: {heard}")
    assert len(heard) <= FUZZ / 100


def test_no_sentence_is_lost(detector, sentences):
    for speech in sentences:
        ((start, end),) = detector.spans(speech)
        assert start == 0 and end == len(speech)


@pytest.mark.parametrize("kind", ["silence", "pink noise", "hum"])
def test_gaps_between_sentences_are_left_out(detector, sentences, kind):
    random, parts, expected, position = np.random.default_rng(1), [], [], 0
    for speech in sentences[:4]:
        gap = KINDS[kind](random, 4 * RATE)
        gap = (gap / max(np.abs(gap).max(), 1e-9) * 0.01).astype(np.float32)
        parts += [gap, speech]
        expected.append((position + len(gap), position + len(gap) + len(speech)))
        position += len(gap) + len(speech)
    spans = detector.spans(np.concatenate(parts))
    assert len(spans) == len(expected)
    for (start, end), (first, last) in zip(spans, expected, strict=True):
        assert first - RATE < start < first + RATE / 5 and last - RATE / 5 < end < last + RATE


def test_spans_are_in_order_and_in_the_recording(detector, sentences):
    random = np.random.default_rng(2)
    for _ in range(20):
        speech = np.concatenate([sentences[i] for i in random.integers(0, len(sentences), 2)])
        samples = speech[random.integers(0, RATE) : random.integers(RATE, len(speech))]
        edges = [edge for span in detector.spans(samples) for edge in span]
        assert edges == sorted(edges) and all(0 <= edge <= len(samples) for edge in edges)
        assert all(end - start >= 400 for start, end in zip(edges[::2], edges[1::2], strict=True))


def test_an_empty_recording_has_no_speech(detector):
    assert detector.spans(np.zeros(0, dtype=np.float32)) == []


def test_the_detector_leaves_pytorchs_threads_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        SpeechDetector(VadConfig())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [{"threshold": 1.0}, {"threshold": -0.1}, {"speech_pad_ms": -1}])
def test_impossible_thresholds_are_refused(wrong):
    with pytest.raises(ValueError, match="of vad"):
        VadConfig(**wrong)

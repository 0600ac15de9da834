"""Normalisation as in Whisper's paper."""

from __future__ import annotations

import pytest

from espnet_lole.evaluation.normalize import as_scored, cer_languages, normalize, unit_of


def test_english_spelling_contractions_and_numbers() -> None:
    assert normalize("It's the colour, twenty-one!", "en") == "it is the color 21"


def test_other_languages_keep_letters_and_lose_punctuation() -> None:
    assert normalize("Grüße,  aus -- KÖLN!", "de") == "grüße aus köln"
    assert normalize("colour", "fr") == "colour"
    assert normalize("?! ...", "de") == ""


def test_decomposed_letters_equal_composed_ones() -> None:
    assert normalize("Ko\u0308ln", "de") == "köln"


def test_only_the_cer_of_unspaced_languages_is_without_spaces() -> None:
    assert as_scored("你 好\u3000吗", "zh", "cer", cer_languages()) == "你好吗"
    assert as_scored("你 好", "zh", "wer", cer_languages()) == "你 好"
    assert as_scored("a b", "de", "cer", cer_languages()) == "a b"


def test_error_is_by_word_or_by_character() -> None:
    assert [unit_of("error", lang, cer_languages()) for lang in ("de", "zh", "ko")] == ["wer", "cer", "wer"]
    assert unit_of("error", "ko", cer_languages(["ko"])) == "cer" and unit_of("wer", "zh", cer_languages()) == "wer"


def test_cer_languages() -> None:
    assert {"zh", "ja", "th", "lo", "km", "my", "yue"} == cer_languages()
    assert "ko" in cer_languages(["ko"])
    with pytest.raises(ValueError, match="out of: ko, got de"):
        cer_languages(["de"])

"""Normalisation as in Whisper's paper."""

from __future__ import annotations

import pytest

from espnet_lole.score.normalize import cer_languages, normalize, remove_spaces


def test_english_spelling_contractions_and_numbers() -> None:
    assert normalize("It's the colour, twenty-one!", "en") == "it is the color 21"


def test_other_languages_keep_letters_and_lose_punctuation() -> None:
    assert normalize("Grüße,  aus -- KÖLN!", "de") == "grüße aus köln"
    assert normalize("colour", "fr") == "colour"
    assert normalize("?! ...", "de") == ""


def test_decomposed_letters_equal_composed_ones() -> None:
    assert normalize("Ko\u0308ln", "de") == "köln"


def test_remove_spaces() -> None:
    assert remove_spaces(" 你 好\u3000吗 ") == "你好吗"


def test_cer_languages() -> None:
    assert {"zh", "ja", "th", "lo", "km", "my", "yue"} == cer_languages()
    assert "ko" in cer_languages(["ko"])
    with pytest.raises(ValueError, match="out of: ko, got de"):
        cer_languages(["de"])

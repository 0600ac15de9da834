"""Normalisation as in Whisper's paper."""

from __future__ import annotations

from espnet_lole.evaluation.normalize import normalize, remove_spaces, wer_or_cer


def test_english_spelling_contractions_and_numbers() -> None:
    assert normalize("It's the colour, twenty-one!", "en") == "it is the color 21"


def test_other_languages_keep_letters_and_lose_punctuation() -> None:
    assert normalize("Grüße,  aus -- KÖLN!", "de") == "grüße aus köln"
    assert normalize("colour", "fr") == "colour"
    assert normalize("?! ...", "de") == ""


def test_decomposed_letters_equal_composed_ones() -> None:
    assert normalize("Ko\u0308ln", "de") == "köln"


def test_only_the_cer_of_languages_without_spaces_ignores_spaces() -> None:
    assert remove_spaces("你 好\u3000吗", "zh", "cer") == "你好吗"
    assert remove_spaces("你 好", "zh", "wer") == "你 好"
    assert remove_spaces("a b", "de", "cer") == "a b"


def test_only_languages_without_spaces_are_scored_by_character() -> None:
    assert {lang for lang in "de en ko zh ja th lo km my yue".split() if wer_or_cer(lang) == "cer"} == {
        "zh", "ja", "th", "lo", "km", "my", "yue"
    }  # fmt: skip

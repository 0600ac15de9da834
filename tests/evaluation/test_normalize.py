"""Normalisation as in Whisper's paper."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize(
    ("lang", "ref", "hyp"), [("hi", "की", "कू"), ("th", "กา", "กี"), ("bn", "কি", "কী"), ("ar", "كَتَبَ", "كُتِبَ")]
)
def test_a_wrong_vowel_sign_is_seen_and_splits_no_word(lang: str, ref: str, hyp: str) -> None:
    assert normalize(f"«{ref}», {ref}!", lang) == f"{ref} {ref}"
    assert normalize(ref, lang) != normalize(hyp, lang)


def test_capitals_follow_the_language() -> None:
    assert normalize("İstanbul IŞIK", "tr") == "istanbul ışık"
    assert normalize("ΟΔΟΣ'ΑΒ", "el") == "οδος αβ"  # a final sigma, although the apostrophe joins words for Unicode


def test_invisible_characters_and_spacing_accents_are_no_letters() -> None:
    assert normalize("\ufeffDonau\u00addampf\u200f l\u00b4eau ❤\ufe0f", "fr") == "donaudampf l eau"
    assert normalize("می\u200cخواهم ក\u200bខ", "fa") == "میخواهم ក ខ"
    assert normalize("don\u00ad't", "en") == normalize("don't", "en")


def test_the_vowel_am_is_one_character() -> None:
    assert normalize("ก\u0e33 ก\u0e4d\u0e32", "th") == "กำ กำ" and len(normalize("ก\u0e33", "th")) == 2

"""Normalisation as in Whisper's paper."""

from __future__ import annotations

import sys

import pytest
from espnet2.text.cleaner import TextCleaner
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

from espnet_lole.evaluation.normalize import DESCRIPTIONS, describe, find_normalizer, normalize, units, wer_or_cer


def test_english_spelling_contractions_and_numbers() -> None:
    assert normalize("It's the colour, twenty-one!", "en") == "it is the color 21"


def test_other_languages_keep_letters_and_lose_punctuation() -> None:
    assert normalize("Grüße,  aus -- KÖLN!", "de") == "grüße aus köln"
    assert normalize("colour", "fr") == "colour"
    assert normalize("?! ...", "de") == ""


def test_decomposed_letters_equal_composed_ones() -> None:
    assert normalize("Ko\u0308ln", "de") == "köln"


def test_only_the_cer_of_languages_without_spaces_ignores_spaces() -> None:
    assert units("你 好 吗", "zh", "cer") == ["你", "好", "吗"]
    assert units("你 好", "zh", "wer") == ["你", "好"]
    assert units("a b", "de", "cer") == ["a", " ", "b"]


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


TEXTS = ["It's the Colour, twenty-one!", "İstanbul (güzel) IŞIK", "की กี", "  Ein\u00a0 Wort! "]


@pytest.mark.parametrize("text", TEXTS)
def test_whisper_is_openais_own(text: str) -> None:
    clean = find_normalizer("whisper")
    assert clean(text, "en") == " ".join(EnglishTextNormalizer()(text).split())
    for lang in ("tr", "hi", "th"):
        assert clean(text, lang) == " ".join(BasicTextNormalizer()(text).split())


def test_whisper_does_not_see_a_wrong_vowel_sign_and_whisper_marks_does() -> None:
    """Words per text: Whisper's cut at each mark, and drop it."""
    whisper, marks = find_normalizer("whisper"), find_normalizer("whisper_marks")
    assert whisper("किताब", "hi") == whisper("केताब", "hi") == "क त ब"
    assert marks("किताब", "hi") == "किताब" != marks("केताब", "hi")


@pytest.mark.parametrize("text", TEXTS)
def test_none_leaves_letters_and_punctuation(text: str) -> None:
    assert find_normalizer("none")(text, "en") == " ".join(text.split())


@pytest.mark.parametrize("name", ["tacotron", "jaconv", "korean_cleaner", "whisper_en", "whisper_basic"])
def test_a_cleaner_is_espnets(name: str) -> None:
    try:
        expected = [TextCleaner(name)(text) for text in TEXTS]
    except RuntimeError as error:  # its package is not installed
        with pytest.raises(ValueError, match=f"--normalize {name}: ESPnet says .* choose from whisper_marks"):
            find_normalizer(name)
        pytest.skip(str(error))
    assert [find_normalizer(name)(text, "de") for text in TEXTS] == [" ".join(text.split()) for text in expected]


def test_unknown_normalisations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nonsense", "", "Whisper"):
        with pytest.raises(ValueError, match=f"--normalize {name}: .*choose from whisper_marks whisper none, or"):
            find_normalizer(name)
    monkeypatch.setitem(sys.modules, "espnet2.text.cleaner", None)
    with pytest.raises(ValueError, match="--normalize tacotron: ESPnet's cleaners cannot be imported .*: choose from"):
        find_normalizer("tacotron")


def test_every_normalisation_is_described() -> None:
    assert all(describe(name) == text for name, text in DESCRIPTIONS.items())
    assert describe("jaconv") == "ESPnet's cleaner `jaconv`"

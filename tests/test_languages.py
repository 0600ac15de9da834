"""Codes of languages, and lower case by the rules of a language."""

from __future__ import annotations

import unicodedata

import pytest
from whisper.tokenizer import LANGUAGES

from espnet_lole.languages import check_language, lower, whisper_languages

SPECIAL_CASING = {
    "I": "ı",
    "I\u0307": "i",
    "İ": "i",
    "I\u0301": "ı\u0301",
    "i": "i",
    "ı": "ı",
}
"""The lower-case mappings for tr and az in Unicode's SpecialCasing.txt: After_I, Not_Before_Dot and unconditional."""


def test_whispers_codes_are_accepted() -> None:
    assert whisper_languages() == LANGUAGES
    for code in LANGUAGES:
        check_language(code, "file")


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("zh-CN", "mean one of: zh \\(chinese\\)$"),
        ("Chinese", "mean one of: zh \\(chinese\\)$"),
        ("mandarin", "mean one of: zh \\(chinese\\)$"),
        ("cmn", "mean one of: zh \\(chinese\\)$"),
        ("German", "mean one of: de \\(german\\)$"),
        ("es_mx", "mean one of: es \\(spanish\\)$"),
        ("deu", "mean one of: .*de \\(german\\)"),
        ("DE", "mean one of: de \\(german\\)$"),
        ("de\u00a0", "mean one of: .*de \\(german\\)"),
        ("qqq", "it knows: af, am, .*, yue, zh$"),
        ("", "it knows: af, "),
    ],
)
def test_other_codes_are_refused_with_those_that_may_be_meant(code: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"file: expected a language code of Whisper, got '{code}'; .*{hint}"):
        check_language(code, "file")


def test_a_language_that_the_backbone_lacks_is_refused_with_a_backbone_that_has_it() -> None:
    known = list(LANGUAGES)[:99]
    check_language("zh", "file", known)
    with pytest.raises(ValueError, match="file: the backbone has 99 languages, and 'yue' .*openai/whisper-large-v3"):
        check_language("yue", "file", known)


@pytest.mark.parametrize("lang", ["tr", "az"])
def test_turkish_and_azeri_have_a_dotless_i(lang: str) -> None:
    assert {text: lower(text, lang) for text in SPECIAL_CASING} == SPECIAL_CASING
    assert lower("KIRMIZI İSTANBUL IŞIK İyi", lang) == "kırmızı istanbul ışık iyi"


def test_final_sigma_of_greek() -> None:
    assert lower("ΟΔΟΣ ΣΑΣ", "el") == "οδος σας"


@pytest.mark.parametrize("lang", ["de", "tr", "lt", "el"])
def test_other_characters_follow_unicode(lang: str) -> None:
    """Each character that has a lower case gets it, and is then unchanged."""
    for c in map(chr, range(0x110000)):
        if unicodedata.category(c) == "Lu" and not (lang == "tr" and c in "Iİ"):
            assert lower(c, lang) == c.lower() and lower(c.lower(), lang) == c.lower()

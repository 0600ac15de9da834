"""Text normalisation as in Whisper's paper (arXiv 2212.04356, appendix C), with marks and capitals by language."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache

import regex

from espnet_lole.languages import UNSPACED, lower
from espnet_lole.whisper.assets import SPELLINGS

DESCRIPTION = (
    "Whisper's `EnglishTextNormalizer` for en, the steps of `BasicTextNormalizer` for the other languages, but vowel "
    "signs and other marks are part of their word, and lower case follows the language"
)

_BRACKETED = (re.compile(r"[<\[][^>\]]*[>\]]"), re.compile(r"\([^)]+?\)"))
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_SPACING_MARK = regex.compile(r" \p{M}+")
_SYMBOL = regex.compile(r"[\p{S}\p{P}\p{Me}]")
_RECOMPOSED = {"\u0e4d\u0e32": "\u0e33", "\u0ecd\u0eb2": "\u0eb3"}
"""The vowel am of Thai and Lao, one character on every keyboard, which NFKC decomposes."""


def normalize(text: str, lang: str) -> str:
    """Normalise a reference or a hypothesis.

    English gets Whisper's ``EnglishTextNormalizer``. Every other language gets the steps of its
    ``BasicTextNormalizer``: no text in brackets, NFKC, a space for every symbol and punctuation character, lower case.
    It differs in two steps. Marks (Unicode's categories Mn and Mc) belong to their word, where Whisper puts a space,
    which hides wrong vowel signs of Hindi or Thai and splits words at each of them. And lower case follows the
    language. Characters that are never visible, such as the soft hyphen, are removed in all languages.

    Args:
        text: the text.
        lang: language code of the reference, for both sides of a pair.

    Returns:
        Words with one space between them; empty when nothing is left.
    """
    text = _INVISIBLE.sub("", text.replace("\u200b", " "))  # a zero-width space separates words
    return " ".join((_english()(text) if lang == "en" else _normalize(text, lang)).split())


@cache
def _english() -> Callable[[str], str]:
    """Build Whisper's English normaliser at its first use: it reads a table of spellings."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer  # slow

    return EnglishTextNormalizer(json.loads(SPELLINGS.read_text(encoding="utf-8")))


def _normalize(text: str, lang: str) -> str:
    """Normalise a text of a language other than English."""
    for bracketed in _BRACKETED:
        text = bracketed.sub("", text)
    text = unicodedata.normalize("NFKC", "\n".join(text.split()))
    text = _SPACING_MARK.sub(" ", text)  # a spacing accent, such as ´, is a symbol that NFKC makes a space and a mark
    for decomposed, composed in _RECOMPOSED.items():
        text = text.replace(decomposed, composed)
    return unicodedata.normalize("NFC", lower(_SYMBOL.sub(" ", text), lang))


def wer_or_cer(lang: str) -> str:
    """Return the metric of a language: ``cer`` for those written without spaces, ``wer`` for the others."""
    return "cer" if lang in UNSPACED else "wer"


def remove_spaces(text: str, lang: str, metric: str) -> str:
    """Remove the spaces from a normalised text for the CER of a language written without them."""
    return "".join(text.split()) if metric == "cer" and lang in UNSPACED else text

"""Text normalisation: Whisper's (arXiv 2212.04356, appendix C), one that keeps marks, and ESPnet's cleaners."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache

import regex
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from espnet_lole.languages import UNSPACED, lower
from espnet_lole.whisper.assets import SPELLINGS

Normalizer = Callable[[str, str], str]
"""Normalises a text of a language: words with one space between them."""
DEFAULT = "whisper_marks"
DESCRIPTIONS = {
    "whisper_marks": "Whisper's `EnglishTextNormalizer` for en, the steps of `BasicTextNormalizer` for the other "
    "languages, but vowel signs and other marks are part of their word, and lower case follows the language",
    "whisper": "Whisper's `EnglishTextNormalizer` for en, its `BasicTextNormalizer` for the other languages",
    "none": "none, but one space between words",
}
"""Name of a normalisation -> what it does."""

_BRACKETED = (re.compile(r"[<\[][^>\]]*[>\]]"), re.compile(r"\([^)]+?\)"))
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_SPACING_MARK = regex.compile(r" \p{M}+")
_SYMBOL = regex.compile(r"[\p{S}\p{P}\p{Me}]")
_RECOMPOSED = {"\u0e4d\u0e32": "\u0e33", "\u0ecd\u0eb2": "\u0eb3"}
"""The vowel am of Thai and Lao, one character on every keyboard, which NFKC decomposes."""


def normalize(text: str, lang: str) -> str:
    """Normalise a reference or a hypothesis, by the default ``whisper_marks``.

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


def find_normalizer(name: str) -> Normalizer:
    """Return a normalisation.

    Args:
        name: one of ``DESCRIPTIONS``, or a cleaner of ESPnet such as ``tacotron``, for references and hypotheses.

    Raises:
        ValueError: there is none of this name, or ESPnet, or what its cleaner needs, is not installed.
    """
    if name == DEFAULT:
        return normalize
    clean = {"whisper": _whisper, "none": lambda text, _lang: text}.get(name) or _espnet_cleaner(name)
    return lambda text, lang: " ".join(clean(text, lang).split())


def describe(name: str) -> str:
    """Describe a normalisation for the files of results."""
    return DESCRIPTIONS.get(name, f"ESPnet's cleaner `{name}`")


def _whisper(text: str, lang: str) -> str:
    return (_english() if lang == "en" else BasicTextNormalizer())(text)


@cache
def _english() -> EnglishTextNormalizer:
    """Build Whisper's English normaliser at its first use: it reads a table of spellings."""
    return EnglishTextNormalizer(json.loads(SPELLINGS.read_text(encoding="utf-8")))


def _espnet_cleaner(name: str) -> Normalizer:
    """Build a cleaner of ESPnet, and try it: some lack their packages."""
    choices = f"choose from {' '.join(DESCRIPTIONS)}, or a cleaner of ESPnet such as tacotron"
    try:
        from espnet2.text.cleaner import TextCleaner

        cleaner = TextCleaner(name)
        cleaner("a")
    except ImportError as error:
        raise ValueError(f"--normalize {name}: ESPnet's cleaners cannot be imported ({error}): {choices}") from error
    except RuntimeError as error:
        raise ValueError(f"--normalize {name}: ESPnet says '{error}': install what it needs, or {choices}") from error
    return lambda text, _lang: cleaner(text)


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


def units(text: str, lang: str, metric: str) -> list[str]:
    """Divide a normalised text into what is counted: words, or characters.

    A space between words is a character, but in languages written without spaces there is none.

    Args:
        text: words with one space between them.
        lang: its language.
        metric: ``wer`` or ``cer``.
    """
    return text.split() if metric == "wer" else list("".join(text.split()) if lang in UNSPACED else text)

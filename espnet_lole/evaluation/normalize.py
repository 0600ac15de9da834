"""How texts are compared: normalised as in Whisper's paper (https://arxiv.org/abs/2212.04356, C), by word or character."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache

from espnet_lole.whisper.tokenizer import UNSPACED

OPTIONAL_CER_LANGUAGES = frozenset({"ko"})
"""Languages written with spaces that some papers score by character: only on demand."""

DESCRIPTION = "Whisper's `EnglishTextNormalizer` for en, `BasicTextNormalizer` for the other languages"


@cache
def _normalizer(english: bool) -> Callable[[str], str]:
    """One normaliser of openai-whisper, built at its first use: the English one reads a table of spellings."""
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer() if english else BasicTextNormalizer()


def normalize(text: str, lang: str) -> str:
    """The text as it is scored by word.

    English gets Whisper's ``EnglishTextNormalizer``, every other language ``BasicTextNormalizer`` without
    ``remove_diacritics``: lower case, no text in brackets, and every mark, symbol and punctuation character becomes a space.
    Marks that NFKC does not compose with their letter are lost and split the word, as with the vowel signs of Thai or Hindi;
    that is what the figures of Whisper's papers do, and it is kept to be comparable with them.

    Args:
        text: a reference or a hypothesis.
        lang: language code of the *reference*; both sides of a pair are normalised alike.

    Returns:
        Words with one space between them; empty when nothing is left.
    """
    return " ".join(_normalizer(lang == "en")(text).split())


def as_scored(text: str, lang: str, metric: str, by_character: Collection[str]) -> str:
    """A normalised text as a metric takes it: the CER of languages ``by_character`` is without white space."""
    return "".join(text.split()) if metric == "cer" and lang in by_character else text


def unit_of(metric: str, lang: str, by_character: Collection[str]) -> str:
    """``wer`` or ``cer``: what a metric means in a language; ``error`` is the CER of the languages ``by_character``."""
    if metric != "error":
        return metric
    return "cer" if lang in by_character else "wer"


def cer_languages(optional: Collection[str] = ()) -> frozenset[str]:
    """Languages scored by character.

    Args:
        optional: languages to add, out of ``OPTIONAL_CER_LANGUAGES``.

    Returns:
        Those written without spaces, and the optional ones.

    Raises:
        ValueError: a language cannot be added.
    """
    unknown = sorted(set(optional) - OPTIONAL_CER_LANGUAGES)
    if unknown:
        allowed = " ".join(sorted(OPTIONAL_CER_LANGUAGES))
        raise ValueError(f"expected optional CER languages out of: {allowed}, got {' '.join(unknown)}")
    return UNSPACED | frozenset(optional)

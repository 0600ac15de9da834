"""Text normalisation as in Whisper's paper (https://arxiv.org/abs/2212.04356, appendix C)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from espnet_lole.whisper.tokenizer import UNSPACED

DESCRIPTION = "Whisper's `EnglishTextNormalizer` for en, `BasicTextNormalizer` for the other languages"


@cache
def _normalizer(english: bool) -> Callable[[str], str]:
    """Build a normaliser of openai-whisper at its first use: the English one reads a table of spellings."""
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer() if english else BasicTextNormalizer()


def normalize(text: str, lang: str) -> str:
    """Normalise a reference or a hypothesis.

    English gets Whisper's ``EnglishTextNormalizer``, every other language ``BasicTextNormalizer`` without
    ``remove_diacritics``: lower case, no text in brackets, and a space for every mark, symbol and punctuation
    character. Marks that NFKC does not compose with their letter are lost and split the word, as with the vowel signs
    of Thai or Hindi; the figures of Whisper's papers do the same.

    Args:
        text: the text.
        lang: language code of the reference, for both sides of a pair.

    Returns:
        Words with one space between them; empty when nothing is left.
    """
    return " ".join(_normalizer(lang == "en")(text).split())


def wer_or_cer(lang: str) -> str:
    """Return the metric of a language: ``cer`` for those written without spaces, ``wer`` for the others."""
    return "cer" if lang in UNSPACED else "wer"


def remove_spaces(text: str, lang: str, metric: str) -> str:
    """Remove the spaces from a normalised text for the CER of a language written without them."""
    return "".join(text.split()) if metric == "cer" and lang in UNSPACED else text

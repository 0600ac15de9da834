"""Whisper's languages: their codes, and what depends on the language of a text."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path

UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "yue"})
"""Languages written without spaces: their texts start without one, and are scored by character."""

_OTHER_CODES = {"cmn": "zh", "nb": "no", "jv": "jw", "fil": "tl", "iw": "he", "in": "id"}
"""Codes of other standards whose spelling does not lead to Whisper's."""

_DOTTED_AND_DOTLESS = str.maketrans({"I": "ı", "İ": "i"})
"""The conditional mappings of Unicode's SpecialCasing.txt for Turkish and Azeri."""

CANTONESE = {"zh-hk": "yue"}
"""Common Voice's code, whose language is not that of its first part."""


def whisper_languages() -> dict[str, str]:
    """Return Whisper's language codes and their English names."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # slow: imports transformers

    return LANGUAGES


def check_language(code: str, where: str | Path, known: Collection[str] | None = None) -> None:
    """Check that Whisper has a language.

    Args:
        code: the language code.
        where: the file or option that contains it, for the message.
        known: codes of the languages of a backbone; default: those of the newest Whisper.

    Raises:
        ValueError: Whisper or the backbone has no such language; the message names similar ones, or a backbone.
    """
    languages = whisper_languages()
    if code in (languages if known is None else known):
        return
    if code in languages:
        raise ValueError(
            f"{where}: the backbone has {len(known)} languages, and '{code}' ({languages[code]}) is none of them; "
            "train on openai/whisper-large-v3, or leave the language out"
        )
    raise ValueError(f"{where}: expected a language code of Whisper, got '{code}'; {_suggest(code, languages)}")


def find_language(name: str, where: str | Path) -> str:
    """Return Whisper's code for a language as users name it: a code, also with a region (de-DE), or an English name.

    Args:
        name: of the language.
        where: the option, or file and line, that contains it, for the message.

    Raises:
        ValueError: Whisper has no such language; the message names similar ones.
    """
    languages, lowered = whisper_languages(), name.lower().replace("_", "-")
    codes = {known: code for code, known in languages.items()} | {code: code for code in languages}
    codes |= _OTHER_CODES | CANTONESE
    code = codes.get(lowered) or codes.get(lowered.partition("-")[0])
    if code is None:
        check_language(name, where)
    return code


def _suggest(code: str, languages: dict[str, str]) -> str:
    """Name the language that a wrong code means by its name or without a region, else those of similar spelling."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    codes = {**TO_LANGUAGE_CODE, **{name: known for known, name in languages.items()}, **_OTHER_CODES}
    base = code.lower().replace("_", "-").partition("-")[0]
    similar = {codes.get(base, base)} & set(languages)
    if not similar:
        matches = difflib.get_close_matches(base, [*languages, *codes])
        similar = {codes.get(match, match) for match in matches} & set(languages)
    suggestions = ", ".join(f"{known} ({languages[known]})" for known in sorted(similar))
    return f"did you mean one of: {suggestions}" if suggestions else f"it knows: {', '.join(sorted(languages))}"


def lower(text: str, lang: str) -> str:
    """Convert a text to lower case by the rules of its language.

    ``str.lower`` follows Unicode, with the final sigma of Greek. Turkish and Azeri have a dotless i besides: I becomes
    ı, and İ, which may be two characters, becomes i. The dots that Lithuanian dictionaries keep under accents are not
    added.
    """
    if lang in ("tr", "az"):
        text = text.replace("I\u0307", "İ").translate(_DOTTED_AND_DOTLESS)
    return text.lower()

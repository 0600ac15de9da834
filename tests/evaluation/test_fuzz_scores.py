"""Random texts of every script: counts are those of the words they were made of, by an independent edit distance."""

from __future__ import annotations

import os
import random
import unicodedata
from functools import cache

import editdistance
import jiwer
import pytest
import regex
from whisper.normalizers import BasicTextNormalizer
from whisper.tokenizer import LANGUAGES

from espnet_lole.evaluation.normalize import normalize
from espnet_lole.evaluation.rates import count, make_pairs

EXAMPLES = int(os.environ.get("LOLE_FUZZ", "300"))
SPACED = sorted(set(LANGUAGES) - {"en", "zh", "ja", "th", "lo", "km", "my", "yue"})
UNSPACED = ["zh", "ja", "th", "lo", "km", "my", "yue"]
SCRIPTS = (
    "Latin Cyrillic Greek Devanagari Bengali Tamil Telugu Thai Lao Khmer Myanmar Arabic Hebrew Han Hiragana Hangul"
)


ALL = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x20000))))
ASSIGNED = [c for c in ALL if unicodedata.category(c) not in ("Cn", "Co")]


@cache
def alphabet(script: str) -> tuple[list[str], list[str]]:
    """Return the letters and digits of a script, and its marks, that lower case and NFKC leave alone."""
    chars = regex.findall(rf"[\p{{Script={script}}}--\p{{DI}}]", ALL, regex.V1)
    stable = [c for c in chars if c.lower() == unicodedata.normalize("NFKC", c) == c]
    letters = [c for c in stable if unicodedata.category(c) in ("Ll", "Lo", "Lm", "Nd") and c not in "σς"]
    return letters, [c for c in stable if unicodedata.category(c) in ("Mn", "Mc")]


def random_word(rng: random.Random, script: str) -> str:
    """Make a word of letters, most of which have a mark if the script has any."""
    letters, marks = alphabet(script)
    syllables = [rng.choice(letters) + (rng.choice(marks) if marks and rng.random() < 0.7 else "") for _ in range(3)]
    return compose("".join(syllables[: rng.randint(1, 3)]))


def compose(text: str) -> str:
    """Compose a text, with the vowel am of Thai and Lao as one character."""
    text = unicodedata.normalize("NFKC", text)
    return text.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")


def capitals(word: str, lang: str) -> str:
    """Write a word in capitals where its language has them."""
    upper = {"i": "İ", "ı": "I"} if lang in ("tr", "az") else {"ı": "ı"}
    return "".join(upper.get(c) or (c.upper() if len(c.upper()) == 1 and c.upper().lower() == c else c) for c in word)


def spell(rng: random.Random, words: list[str], lang: str) -> str:
    """Write words as a text: capitals, decomposed letters, punctuation, symbols, odd spaces, invisible characters."""
    parts = [rng.choice(["", "«", "  ", "¿", "\ufeff"])]
    for word in words:
        word = capitals(word, lang) if rng.random() < 0.3 else word
        parts += [unicodedata.normalize("NFD", word) if rng.random() < 0.3 else word]
        parts += [
            rng.choice(
                [" ", ", ", "! ", " — ", "\u00a0", "\u3000", "。", "।", "؟ ", " ❤\ufe0f ", "\u200b", " ´ ", "\u00ad "]
            )
        ]
    return "".join(parts)


def random_pair(rng: random.Random, lang: str) -> tuple[list[str], list[str]]:
    """Make the words of a reference and of a hypothesis with errors."""
    vocabulary = [random_word(rng, rng.choice(SCRIPTS.split())) for _ in range(rng.randint(1, 6))]
    ref = rng.choices(vocabulary, k=rng.randint(0, 8))
    hyp = [rng.choice([word, word, word, rng.choice(vocabulary), word[:-1] or word]) for word in ref]
    return ref, rng.choice([hyp, hyp[1:], hyp + rng.choices(vocabulary, k=2), ref])


@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_counts_are_those_of_the_words_that_a_text_was_made_of(metric: str, tmp_path) -> None:
    rng, fewest = random.Random(metric), 0
    for _ in range(EXAMPLES):
        lang = rng.choice(SPACED if metric == "wer" else UNSPACED)
        ref, hyp = random_pair(rng, lang)
        texts = {"a": spell(rng, ref, lang), "b": "eins"}, {"a": spell(rng, hyp, lang), "b": "eins"}
        counts = count(make_pairs(*texts, dict.fromkeys("ab", lang), tmp_path), metric)
        units = [side if metric == "wer" else list("".join(side)) for side in (ref, hyp)]
        same = 1 if metric == "wer" else 4
        least = editdistance.eval(*units)  # sclite's weights may give more errors, of which more are no substitutions
        assert least <= counts.errors and (counts.errors == least or counts.substitutions < least), (lang, texts)
        fewest += counts.errors == least
        assert counts.units == len(units[0]) + same and counts.sentences == 2 and counts.empty == (not ref)
        assert counts.sentence_errors == (ref != hyp if metric == "wer" else "".join(ref) != "".join(hyp))
        if ref and metric == "wer" and counts.errors == least:
            assert counts.error_rate == pytest.approx(100 * jiwer.wer([" ".join(ref), "eins"], [" ".join(hyp), "eins"]))
    assert fewest >= 0.95 * EXAMPLES


def test_english_is_whispers_for_any_text() -> None:
    from whisper.normalizers import EnglishTextNormalizer

    rng, whispers = random.Random(0), EnglishTextNormalizer()
    pieces = [
        "colour",
        "twenty one",
        "$20",
        "it's",
        "café",
        "Dr.",
        "one hundred percent",
        "50%",
        "(x)",
        "1,000",
        "٣",
        "!",
    ]
    for _ in range(EXAMPLES):
        text = " ".join(rng.choices(pieces, k=rng.randint(0, 8)))
        assert normalize(text, "en") == " ".join(whispers(text).split())


def is_letter(c: str) -> bool:
    """Whether a character is a letter, mark or number that can be seen and is no enclosing circle or keycap."""
    return unicodedata.category(c)[0] in "LMN" and unicodedata.category(c) != "Me" and not regex.match(r"\p{DI}", c)


def characters() -> list[str]:
    """Sample the assigned characters; all of them for 10,000 examples."""
    return sorted(random.Random(0).sample(ASSIGNED, min(len(ASSIGNED), 20 * EXAMPLES)))


def test_no_letter_mark_or_number_vanishes_and_other_characters_are_as_with_whisper() -> None:
    """Characters between two letters, by Unicode's tables and Whisper's own normaliser."""
    basic = BasicTextNormalizer()
    for c in characters():
        made, whispers = normalize(f"a{c}b", "de"), " ".join(basic(f"a{c}b").split())
        folded = unicodedata.normalize("NFKC", c)
        marks = any(unicodedata.category(d)[0] == "M" for d in folded + c.lower())
        if regex.match(r"\p{DI}", c):
            assert made == ("a b" if c == "\u200b" else "ab"), ascii(c)
        elif folded.startswith(" ") and marks:
            assert made in ("a b", "a ιb"), ascii(c)  # a spacing accent
        elif not marks and c != "Ϲ":  # a sigma, whose lower case depends on its place
            assert made == whispers, ascii(c)
        elif is_letter(c):
            assert made == compose(f"a{c}b").lower(), ascii(c)


def test_letters_of_a_script_stay_different() -> None:
    """Two characters become one only if Unicode calls them compatible, or one the capital of the other."""
    seen: dict[str, str] = {}
    for c in characters():
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", f"a{c}").casefold())
        if is_letter(c) and not any(unicodedata.category(d)[0] in "SPZ" for d in folded):
            assert seen.setdefault(normalize(f"a{c}", "de"), folded) == folded, ascii(c)

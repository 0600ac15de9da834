"""Transcripts: originals that a recipe has changed, tags, and what does not look like the language."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import regex

from espnet_lole.data.kaldi import KaldiDir
from espnet_lole.data.lhotse import read_manifest

TAG = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]")
"""A mark for something else than a word, such as [unk] and <noise>."""
CLIP = re.compile(r"(\S+)/clips/([^\s/]+)")
ORIGINALS = "validated.tsv"
"""Table of Common Voice, next to the folder `clips` of its audio."""
SHARE = 0.01
"""Share of a set's texts from which a warning counts them."""

_SCRIPTS = {
    "Arabic": "ar fa ps sd ur",
    "Armenian": "hy",
    "Bengali": "as bn",
    "Cyrillic": "ba be bg mk mn ru tg uk",
    "Cyrillic Latin": "az bs kk sr tk tt uz",
    "Devanagari": "hi mr ne sa",
    "Ethiopic": "am",
    "Georgian": "ka",
    "Greek": "el",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Han": "yue zh",
    "Han Hangul": "ko",
    "Han Hiragana Katakana": "ja",
    "Hebrew": "he yi",
    "Kannada": "kn",
    "Khmer": "km",
    "Lao": "lo",
    "Malayalam": "ml",
    "Myanmar": "my",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
    "Tibetan": "bo",
}
"""Scripts of Unicode -> languages of Whisper that are written in them; all others are in Latin."""


def scripts(language: str) -> list[str]:
    """Return the names of the scripts of a language."""
    return next((names for names, codes in _SCRIPTS.items() if language in codes.split()), "Latin").split()


def fits_script(text: str, language: str) -> bool:
    """Return whether at least half of a text's letters are of its language's script; a text without letters fits."""
    letters = regex.findall(r"\p{L}", text)
    names = "".join(rf"\p{{Script={name}}}" for name in scripts(language))
    return 2 * len(regex.findall(rf"[{names}]", "".join(letters))) >= len(letters)


def in_capitals(text: str) -> bool:
    """Return whether the letters of a text are capitals: several of them, and no few among letters without case."""
    return text.isupper() and sum(map(str.isupper, text)) > max(1, sum(map(str.isalpha, text)) / 2)


def has_tag(text: str) -> bool:
    """Return whether a text has a tag such as [unk] or <noise>."""
    return TAG.search(text) is not None


def remove_tags(text: str) -> str:
    """Remove tags such as [unk] and <noise> from a text."""
    return " ".join(TAG.sub(" ", text).split()) if has_tag(text) else text


def find_suspects(language: str, texts: Mapping[str, str]) -> list[str]:
    """Count the texts in capitals, with tags, or in another script.

    Args:
        language: their language.
        texts: utterance -> transcript.

    Returns:
        A sentence for each of these kinds that has more than SHARE of the texts.
    """
    written_in = " ".join(scripts(language))
    kinds: dict[str, Callable[[str], bool]] = {
        "in capitals, which are more tokens; `lower: true` makes those of a recipe lower case": in_capitals,
        "with tags, which would be learned as words": has_tag,
        f"not in the script of '{language}' ({written_in})": lambda text: not fits_script(text, language),
    }
    found = []
    for kind, is_of_kind in kinds.items():
        utts = [utt for utt, text in texts.items() if is_of_kind(text)]
        if len(utts) > SHARE * len(texts):
            found.append(f"{len(utts)} of {len(texts)} texts are {kind} ({utts[0]}: {texts[utts[0]][:60]})")
    return found


def restore_texts(kaldi: KaldiDir, folder: Path) -> tuple[dict[str, str], list[Path]]:
    """Find the texts of Common Voice as its own table has them, with letter case: the recipe writes capitals.

    Args:
        kaldi: a directory; commands in its wav.scp may contain the paths of the clips.
        folder: where relative paths start.

    Returns:
        Utterance -> transcript, of the table where it has the clip; and the tables.

    Raises:
        ValueError: a table is malformed.
    """
    texts, tables = dict(kaldi.text), {}
    for utt in kaldi.text.keys() & set(kaldi.utterances()):
        if kaldi.problem(utt) or not (clip := CLIP.search(kaldi.wav[kaldi.recording(utt)])):
            continue
        table = folder / clip[1] / ORIGINALS
        if table not in tables:
            tables[table] = {row.audio: row.text for row in read_manifest(table)} if table.is_file() else {}
        texts[utt] = tables[table].get(clip[2], texts[utt])
    return texts, [table for table, originals in tables.items() if originals]

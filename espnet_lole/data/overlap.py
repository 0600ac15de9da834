"""Utterances that are in two sets: the same id, the same audio, or a copy of the audio with the same text."""

import filecmp
import os
from collections.abc import Sequence
from pathlib import Path

from espnet_lole.data.digests import digest_audio
from espnet_lole.data.kaldi import KaldiDir
from espnet_lole.data.lhotse import read_manifest
from espnet_lole.data.manifests import is_manifest


def find_shared(first: KaldiDir, second: KaldiDir) -> list[tuple[str, str]]:
    """Find the utterances that two sets have in common, and return their ids in both.

    Ids count if the corpus gives them in both sets. A copy of audio has the same content at another path.
    """
    pairs = {(utt, utt) for utt in first.text.keys() & second.text.keys() if first.ids_given and second.ids_given}
    others = {_audio(second, utt): utt for utt in second.text}
    pairs |= {(utt, others[key]) for utt in first.text if (key := _audio(first, utt)) in others}
    texts = set(first.text.values()) & set(second.text.values())
    copies = {_content(second, utt): utt for utt, text in second.text.items() if text in texts}
    pairs |= {
        (utt, copies[key])
        for utt, text in first.text.items()
        if text in texts and (key := _content(first, utt)) in copies and _same_audio(first, utt, second, copies[key])
    }
    return sorted(pairs)


def format_utterance(kaldi: KaldiDir, utt: str, places: Sequence[Path]) -> str:
    """Name an utterance with its audio, and with file and line where it is found in a table.

    Args:
        kaldi: the set.
        utt: its id, with the language before it.
        places: what the set was read from.
    """
    entry, old = kaldi.wav[kaldi.recording(utt)], utt.removeprefix(f"{kaldi.utt2lang[utt]}_")
    return f"{_find_line(places, {utt, old}, entry) or kaldi.path}: '{old}' ({entry})"


def _find_line(places: Sequence[Path], ids: set[str], entry: str) -> str | None:
    """Return `file:line` of an utterance in Kaldi's text, or in a manifest."""
    for place in places:
        if is_manifest(place):
            if where := next((row.where for row in read_manifest(place) if entry.endswith(row.audio)), None):
                return where
        elif (table := place / "text").is_file():
            with table.open(encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.split(maxsplit=1)[:1] and line.split(maxsplit=1)[0] in ids:
                        return f"{table}:{number}"
    return None


def _audio(kaldi: KaldiDir, utt: str) -> tuple[object, ...]:
    """Return the audio of an utterance by its path and times."""
    times = () if kaldi.segments is None else kaldi.segments[utt][1:]
    return kaldi.wav[kaldi.recording(utt)], *(() if times == (0.0, -1.0) else times)


def _same_audio(first: KaldiDir, utt: str, second: KaldiDir, other: str) -> bool:
    """Return whether two utterances of one text, one digest and the same times have the same audio."""
    entry, copy = first.wav[first.recording(utt)], second.wav[second.recording(other)]
    return entry == copy or (os.path.getsize(entry) > 0 and filecmp.cmp(entry, copy, shallow=False))


def _content(kaldi: KaldiDir, utt: str) -> tuple[object, ...]:
    """Return the text, the times and a digest of the audio of an utterance."""
    entry, *times = _audio(kaldi, utt)
    return kaldi.text[utt], digest_audio(entry), *times

"""Make a manifest of human speech from clones of public repositories, all under CC0.

    git clone https://github.com/omnilingo/rsample-100-cv-corpus-6.1-2020-12-11
    git clone https://github.com/rhasspy/dataset-voice-kerstin

The first has 100 recordings of Common Voice in each of 56 languages, by many speakers: half of them are the test set,
and no speaker and no sentence is in two sets. dataset-voice-kerstin, -nathalie and -kathleen add an hour of one voice
each to the training sets of German, Dutch and English.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import soundfile

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.ownership import check_output_file

SAMPLE = "rsample-100-cv-corpus-6.1-2020-12-11"
VOICES = {"de": "dataset-voice-kerstin", "en": "dataset-voice-kathleen", "nl": "dataset-voice-nathalie"}
LOCALES = {"sv": "sv-SE", "zh": "zh-CN"}
"""Language -> its folder in the sample, where that has another name."""
LANGUAGES = "de en es fr it nl pl pt ru tr zh".split()
TEST, DEV = 50, 15
"""Utterances of Common Voice in the test and dev set of a language; the others train."""
FIELDS = ("path", "text", "language", "speaker", "split")


class Utterance(NamedTuple):
    """A recording: its file, text, language, speaker and, once it is known, set."""

    path: Path
    text: str
    language: str
    speaker: str
    split: str = ""

    @property
    def sentence(self) -> str:
        """The text without case and punctuation, to compare sentences."""
        return "".join(c for c in self.text.casefold() if c.isalnum())


def common_voice(clones: Path, lang: str) -> list[Utterance]:
    """Read the sample of Common Voice in a language.

    Raises:
        FileNotFoundError: the clone is missing, or the sample has no such language.
    """
    folder = clones / SAMPLE / LOCALES.get(lang, lang)
    with open(folder / "validated.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Utterance(folder / "clips" / row["path"], row["sentence"], lang, row["client_id"][:16]) for row in rows]


def voice(clones: Path, lang: str) -> Iterator[Utterance]:
    """Read the recordings of one speaker: a table of texts, or a file beside each recording."""
    name = VOICES[lang]
    table = clones / name / "metadata.csv"
    if table.is_file():
        for line in table.read_text(encoding="utf-8").splitlines():
            utt, _, text = line.partition("|")
            if (file := clones / name / "verified" / f"{utt}.flac").is_file():
                yield Utterance(file, text, lang, name)
    else:
        for file in sorted((clones / name / "data").glob("*.wav")):
            yield Utterance(file, file.with_suffix(".txt").read_text(encoding="utf-8"), lang, name)


def assign_sets(utterances: Iterable[Utterance]) -> list[Utterance]:
    """Assign whole speakers to dev, test and train, in the order of a hash; drop sentences that another set has."""
    speakers = defaultdict(list)
    for utterance in utterances:
        speakers[utterance.speaker].append(utterance)
    assigned, set_of, sizes = [], {}, {"dev": DEV, "test": TEST}
    for speaker in sorted(speakers, key=lambda name: (zlib.crc32(name.encode()), name)):
        split = next((s for s, free in sizes.items() if free >= len(speakers[speaker])), "train")
        for utterance in speakers[speaker]:
            if set_of.setdefault(utterance.sentence, split) == split:
                assigned.append(utterance._replace(split=split))
                if split in sizes:
                    sizes[split] -= 1
    return assigned


def add_voice(sets: list[Utterance], recordings: Iterable[Utterance], max_minutes: float) -> list[Utterance]:
    """Add the recordings of one speaker to the training set, up to a duration, without sentences of dev and test."""
    known, seconds, added = {u.sentence for u in sets}, 0.0, []
    for utterance in recordings:
        if utterance.sentence in known:
            continue
        seconds += soundfile.info(utterance.path).duration
        if seconds > 60 * max_minutes:
            break
        known.add(utterance.sentence)
        added.append(utterance._replace(split="train"))
    return sets + added


def prepare(clones: Path, langs: Iterable[str], max_minutes: float) -> list[Utterance]:
    """List the utterances of all languages, and print the minutes and speakers of each set.

    Raises:
        FileNotFoundError: a clone is missing.
    """
    utterances = []
    for lang in langs:
        sets = assign_sets(common_voice(clones, lang))
        if lang in VOICES:
            sets = add_voice(sets, voice(clones, lang), max_minutes)
        for split in ("train", "dev", "test"):
            chosen = [u for u in sets if u.split == split]
            minutes = sum(soundfile.info(u.path).duration for u in chosen) / 60
            speakers = len({u.speaker for u in chosen})
            print(f"human: {lang} {split}: {len(chosen)} utterances, {minutes:.1f} min, {speakers} speakers")
        utterances += sets
    return utterances


def is_made_here(table: Path, clones: Path) -> bool:
    """Return whether a table has only recordings of the clones, with their texts as they are there.

    Raises:
        FileNotFoundError: a clone is missing.
    """
    with open(table, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows, fields = list(reader), tuple(reader.fieldnames or ())
    if fields != FIELDS:
        return False
    known: set[tuple[str, str]] = set()
    for lang in {row["language"] for row in rows}:
        recordings = [*common_voice(clones, lang), *(voice(clones, lang) if lang in VOICES else ())]
        known |= {(str(utterance.path), utterance.text) for utterance in recordings}
    return all((row["path"], row["text"]) in known for row in rows)


def get_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clones", type=Path, default=Path("downloads"), help="folder of the clones")
    parser.add_argument("--output", type=Path, default=Path("data/human.csv"), help="manifest to write")
    parser.add_argument("--langs", nargs="+", default=LANGUAGES, help="languages, Whisper's codes")
    parser.add_argument("--max_minutes", type=float, default=60, help="training audio of one voice")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    clones = args.clones.absolute()
    try:
        check_output_file(args.output, overwrite=args.output.is_file() and is_made_here(args.output, clones))
        utterances = prepare(clones, args.langs, args.max_minutes)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}: clone the repositories that --help names into one folder, and give it as --clones")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows(utterances)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(args.output, table.getvalue())


if __name__ == "__main__":
    main()

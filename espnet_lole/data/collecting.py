"""Collecting: write the corpora of all languages to data/train, data/dev and data/test_<language>."""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations, groupby
from pathlib import Path

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.data.audio import split_ark
from espnet_lole.data.corpora import Source, check_selected, languages_of, load_corpus
from espnet_lole.data.hub import is_dataset, read_dataset
from espnet_lole.data.kaldi import KaldiDir, KaldiSegment, write_table
from espnet_lole.data.lhotse import read_manifest
from espnet_lole.data.manifests import is_manifest, parse_rows, to_kaldi
from espnet_lole.data.recipes import Recipe, limit_duration, run_in_folder
from espnet_lole.data.splitting import split_off
from espnet_lole.data.summary import Tally, format_reasons
from espnet_lole.ownership import check_output


def collect(corpus: str | Path, datadir: str | Path, langs: Sequence[str] = ()) -> list[Tally]:
    """Write datadir/train and datadir/dev with all languages, and datadir/test_<language>.

    Args:
        corpus: the corpus file.
        datadir: the folder to write into.
        langs: the languages to collect; all by default.

    Returns:
        The counts of each language and set.

    Raises:
        FileNotFoundError: a directory or file does not exist.
        ValueError: the corpus file or a table is malformed, or a language is not in the corpus.
        OSError: a recipe of ESPnet failed.
    """
    root, sources = load_corpus(corpus)
    check_selected(langs, {source.language for source in sources}, corpus)
    sources = [source for source in sources if not langs or source.language in langs]
    places = {source: source.locate(root) for source in sources}
    inputs = [place for group in places.values() for place in group]
    for folder in sorted({Path(datadir, source.output) for source in sources}):
        check_output(folder, inputs)
    parts: dict[Path, list[KaldiDir]] = defaultdict(list)
    skipped: dict[Path, dict[str, str]] = defaultdict(dict)
    tallies = []
    for source, part, dropped in read_sources(places, root, Path(datadir, "extracted")):
        folder = Path(datadir, source.output)
        parts[folder].append(part)
        skipped[folder] |= dropped
        tallies.append(Tally.count(part, folder, source.language, part.text, dropped=dropped))
    with ExitStack() as stack:  # replaces the directories after all are written
        for folder in parts:
            written = stack.enter_context(atomic_folder(folder, inputs))
            merge(parts[folder]).write(written)
            write_table(written / "skipped", skipped[folder])
    return tallies


def read_sources(
    places: Mapping[Source, Sequence[Path]], root: Path, extracted: Path
) -> Iterator[tuple[Source, KaldiDir, dict[str, str]]]:
    """Read the usable utterances of each language and set, and split sets off the training set where a share is named.

    Args:
        places: language and set -> where its data are.
        root: see `import_dir`.
        extracted: folder for audio that is not in files.

    Yields:
        The language and set, its utterances, and why each of the others was dropped.

    Raises:
        FileNotFoundError: a directory or table does not exist.
        ValueError: a table is malformed, two ids become one, or nothing is usable.
    """
    for language, group in groupby(places, key=lambda source: source.language):
        sources = {source.split: source for source in group}
        read = {
            name: read_source(source, places[source], root, extracted)
            for name, source in sources.items()
            if not source.share
        }
        if shares := {name: source.share for name, source in sources.items() if source.share}:
            whole, dropped = read["train"]
            made, kind = split_off(whole, shares)
            read |= {name: (part, {}) for name, part in made.items()} | {"train": (made["train"], dropped)}
            print(f"{language}: {' and '.join(shares)} are split off {whole.path} by {kind}", file=sys.stderr)
        _check_overlap(language, {name: part for name, (part, _) in read.items()})
        yield from ((source, *read[name]) for name, source in sources.items())


def read_source(source: Source, places: Sequence[Path], root: Path, extracted: Path) -> tuple[KaldiDir, dict[str, str]]:
    """Read the usable utterances of one language and set, under ids that begin with the language.

    Args:
        source: the language and set.
        places: where its data are.
        root: see `import_dir`.
        extracted: see `read_sources`.

    Returns:
        The utterances, and why each of the others was dropped.

    Raises:
        FileNotFoundError: a directory or table does not exist.
        ValueError: a table is malformed, two ids become one, or nothing is usable.
    """
    parts, dropped = [], {}
    for place in places:
        part, reasons = import_dir(read_part(place, source, root, extracted), source.language, root, source.recipe)
        parts.append(part)
        dropped |= reasons
    whole = merge(parts)
    if source.split == "train" and source.recipe and source.recipe.max_hours < float("inf"):
        whole, beyond = limit_duration(whole, 3600 * source.recipe.max_hours)
        dropped |= beyond
    return whole, dropped


def read_part(place: Path, source: Source, root: Path, extracted: Path) -> KaldiDir:
    """Read a Kaldi directory, or the rows of a language and set in a manifest or in `datasets`.

    Raises:
        FileNotFoundError: a directory or file does not exist.
        ValueError: it is malformed, or has no rows of the language and set.
    """
    if is_manifest(place):
        rows = read_manifest(place)
    elif not (place / "wav.scp").exists() and is_dataset(place):
        folder = extracted / f"{source.language}_{source.split}"
        rows = parse_rows(read_dataset(place, source.split, folder), place)
    else:
        return KaldiDir.read(place)
    codes = languages_of(rows) if any(row.language for row in rows) else {"": source.language}
    rows = [row for row in rows if codes[row.language] == source.language]
    if any(row.split for row in rows):
        rows = [row for row in rows if row.split == source.split]
    if not rows:
        raise ValueError(
            f"{place}: expected rows of {source.split} in '{source.language}', got none, and the languages "
            f"{', '.join(sorted(set(codes.values())))}; correct the table or the corpus file"
        )
    return to_kaldi(rows, place, [root / source.audio] if source.audio else [])


def _check_overlap(language: str, sets: Mapping[str, KaldiDir]) -> None:
    """Print a warning if two sets have the same audio.

    Raises:
        ValueError: they are the training set and another one from one manifest.
    """
    entries = {
        name: {(part.wav[part.recording(utt)], (part.segments or {}).get(utt, ())[1:]) for utt in part.text}
        for name, part in sets.items()
    }
    for first, second in combinations(entries, 2):
        shared = len(entries[first] & entries[second])
        place = sets[first].path
        if shared and first == "train" and place == sets[second].path and not (place / "wav.scp").exists():
            raise ValueError(
                f"{place}: train and {second} have {shared} utterances of '{language}' in common; give it a "
                f"column split, or a share such as {second}: 0.05"
            )
        if shared:
            print(f"warning: {language}: {first} and {second} share {shared} utterances", file=sys.stderr)


def import_dir(
    kaldi: KaldiDir, language: str, root: Path, recipe: Recipe | None = None
) -> tuple[KaldiDir, dict[str, str]]:
    """Make ids and paths of a directory unique, and drop its unusable utterances.

    Args:
        kaldi: the directory.
        language: the language of all its utterances.
        root: where relative audio paths may start, apart from the current directory, `kaldi` and its parent.
        recipe: the recipe that prepared it: relative paths start in its folder, and its transcripts are cleaned.

    Returns:
        The usable utterances under their new ids, and why each of the others was dropped.

    Raises:
        ValueError: two ids become one, or nothing is usable.
    """
    here = Path(os.path.abspath(kaldi.path))
    places = [Path.cwd(), Path(os.path.abspath(root)), here, here.parent]
    if recipe is not None:
        places = [recipe.folder]
        kaldi = replace(kaldi, text={utt: recipe.clean(text, language) for utt, text in kaldi.text.items()})
    part = KaldiDir(kaldi.path, segments=None if kaldi.segments is None else {})
    dropped = {}
    for utt in kaldi.utterances():
        reason = kaldi.problem(utt)
        entry = None if reason else locate(kaldi.wav[kaldi.recording(utt)], places, recipe)
        if entry is None:
            dropped[utt] = reason or f"audio not found: {kaldi.wav[kaldi.recording(utt)]}"
            continue
        new, recording = (prefixed(language, name) for name in (utt, kaldi.recording(utt)))
        if new in part.text:
            raise _duplicate(new, kaldi.path)
        _add(part.wav, recording, entry, kaldi.path)
        part.text[new] = kaldi.text[utt]
        part.utt2spk[new] = prefixed(language, kaldi.speaker(utt))
        part.utt2lang[new] = language
        if part.segments is not None:
            part.segments[new] = kaldi.segments[utt]._replace(recording=recording)
    if not part.text:
        raise ValueError(_nothing_usable(kaldi.path, language, dropped, places))
    return part, {prefixed(language, utt): reason for utt, reason in dropped.items()}


def prefixed(language: str, name: str) -> str:
    """Put the language before an id, unless it is there, so that ids of two languages never clash."""
    return name if name.startswith((f"{language}_", f"{language}-")) else f"{language}_{name}"


def locate(entry: str, places: Sequence[Path], recipe: Recipe | None = None) -> str | None:
    """Make an entry of wav.scp independent of the current directory.

    Args:
        entry: a path, an ark offset or a command (which remains as it is, unless a recipe wrote it).
        places: folders that a relative path may start from, in the order to try.
        recipe: the recipe that wrote the entry.

    Returns:
        The entry with an absolute path; None if a relative path exists in none of the places.
    """
    if entry.endswith("|"):
        return run_in_folder(entry, recipe.folder) if recipe else entry
    path, offset = split_ark(entry)
    if not os.path.isabs(path):
        existing = next((place / path for place in places if (place / path).exists()), None)
        if existing is None:
            return None
        path = os.path.abspath(existing)
    return path if offset is None else f"{path}:{offset}"


def _nothing_usable(path: Path, language: str, dropped: Mapping[str, str], places: Sequence[Path]) -> str:
    """Format the message for a directory without a usable utterance."""
    hint = "correct its text and wav.scp"
    missing = [reason.partition(": ")[2] for reason in dropped.values() if reason.startswith("audio not found")]
    if missing:
        hint = f"looked for '{missing[0]}' in {', '.join(map(str, places))}; correct wav.scp or 'root'"
    reasons = format_reasons(dropped) or "it is empty"
    return f"{path}: expected utterances in '{language}', none is usable: {reasons}; {hint}"


def merge(parts: Sequence[KaldiDir]) -> KaldiDir:
    """Merge directories; if only some have segments, each recording of the others becomes a segment."""
    whole = KaldiDir(parts[0].path, segments={} if any(part.segments is not None for part in parts) else None)
    for part in parts:
        for name in ("wav", "text", "utt2spk", "utt2lang"):
            for key, value in getattr(part, name).items():
                _add(getattr(whole, name), key, value, part.path)
        if whole.segments is not None:
            whole.segments |= part.segments or {utt: KaldiSegment(utt, 0.0, -1.0) for utt in part.text}
    return whole


def _add(table: dict[str, str], key: str, value: str, where: Path) -> None:
    """Add a row to a table; the same id with two values is an error."""
    if table.setdefault(key, value) != value:
        raise _duplicate(key, where)


def _duplicate(key: str, where: Path) -> ValueError:
    return ValueError(f"{where}: duplicate id '{key}' after adding the language prefix; rename one")

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
from espnet_lole.data.hub import HUB, is_dataset, read_dataset
from espnet_lole.data.kaldi import KaldiDir, KaldiSegment, write_table
from espnet_lole.data.lhotse import read_manifest
from espnet_lole.data.manifests import is_manifest, parse_rows, to_kaldi
from espnet_lole.data.overlap import find_shared, format_utterance
from espnet_lole.data.recipe_runs import prepare_recipes
from espnet_lole.data.recipes import Recipe, limit_duration, run_in_folder
from espnet_lole.data.splitting import split_off
from espnet_lole.data.summary import Tally, format_reasons
from espnet_lole.data.texts import find_suspects, has_tag, restore_texts
from espnet_lole.ownership import check_output


def collect(corpus: str | Path, datadir: str | Path, langs: Sequence[str] = (), download: bool = False) -> list[Tally]:
    """Write datadir/train and datadir/dev with all languages, and datadir/test_<language>.

    Args:
        corpus: the corpus file.
        datadir: the folder to write into.
        langs: the languages to collect; all by default.
        download: allow recipes of ESPnet to download.

    Returns:
        The counts of each language and set.

    Raises:
        FileNotFoundError: a directory or file does not exist.
        ValueError: the corpus file or a table is malformed, a language is not in the corpus, or an utterance is in its
            training set and in another one.
        OSError: a recipe of ESPnet lacks something, or failed.
    """
    root, sources = load_corpus(corpus)
    check_selected(langs, {source.language for source in sources}, corpus)
    sources = [source for source in sources if not langs or source.language in langs]
    places = find_places(sources, root, Path(datadir, "recipes"), download)
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


def find_places(sources: Sequence[Source], root: Path, workdir: Path, download: bool) -> dict[Source, list[Path]]:
    """Return where the data of each language and set are, after the recipes have prepared them.

    Args:
        sources: the languages and sets.
        root: where relative paths start.
        workdir: the folder for what recipes write.
        download: allow recipes to download.

    Raises:
        OSError: a recipe lacks something, or failed.
    """
    wanted: dict[str, tuple[Recipe, list[str]]] = {}
    for source in sources:
        if source.recipe:
            wanted.setdefault(source.language, (source.recipe, []))[1].extend(source.paths)
    folders = prepare_recipes(wanted, workdir, download) if wanted else {}
    return {
        source: [folders[source.language] / "data" / name for name in source.paths]
        if source.recipe
        else [Path(path) if path.startswith(HUB) else root / path for path in source.paths]
        for source in sources
    }


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
        for name, (part, _) in read.items():
            for suspects in find_suspects(language, part.text):
                print(f"warning: {language}: {name}: {suspects}", file=sys.stderr)
        _check_overlap(language, {sources[name]: part for name, (part, _) in read.items()}, places)
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


def _check_overlap(language: str, sets: Mapping[Source, KaldiDir], places: Mapping[Source, Sequence[Path]]) -> None:
    """Print a warning if dev and test set have an utterance in common.

    Raises:
        ValueError: the training set has an utterance in common with one of them.
    """
    for first, second in combinations(sets, 2):
        shared = find_shared(sets[first], sets[second])
        if not shared:
            continue
        if first.split != "train":
            print(f"warning: {language}: dev and test share {len(shared)} utterances", file=sys.stderr)
            continue
        utts = zip((first, second), shared[0], strict=True)
        pair = " is ".join(format_utterance(sets[source], utt, places[source] or places[first]) for source, utt in utts)
        advice = "remove them from one, or give different utterances different ids"
        if first.recipe:
            advice += f"; if local/data.sh was stopped, move {places[first][0].parent} away, so that stage 1 runs it"
        elif first.paths == second.paths:
            advice = f"give it a column split, or a share such as {second.split}: 0.05"
        raise ValueError(
            f"train and {second.split} of '{language}' have {len(shared)} utterances in common: {pair}; {advice}"
        )


def import_dir(
    kaldi: KaldiDir, language: str, root: Path, recipe: Recipe | None = None
) -> tuple[KaldiDir, dict[str, str]]:
    """Make ids and paths of a directory unique, and drop its unusable utterances.

    Args:
        kaldi: the directory.
        language: the language of all its utterances.
        root: where relative audio paths may start, apart from the current directory, `kaldi` and its parent.
        recipe: the recipe that prepared it: relative paths start in the folder in which it ran, and its transcripts are
            restored and cleaned.

    Returns:
        The usable utterances under their new ids, and why each of the others was dropped.

    Raises:
        ValueError: two ids become one, or nothing is usable.
    """
    here = Path(os.path.abspath(kaldi.path))
    places = [Path.cwd(), Path(os.path.abspath(root)), here, here.parent]
    if recipe is not None:
        places = [here.parents[1]]
        kaldi = _clean_texts(kaldi, language, recipe, here.parents[1])
    part = KaldiDir(kaldi.path, segments=None if kaldi.segments is None else {}, ids_given=kaldi.ids_given)
    dropped = {}
    for utt in kaldi.utterances():
        reason = kaldi.problem(utt)
        entry = None if reason else locate(kaldi.wav[kaldi.recording(utt)], places, recipe is not None)
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


def _clean_texts(kaldi: KaldiDir, language: str, recipe: Recipe, folder: Path) -> KaldiDir:
    """Restore and clean the transcripts that a recipe has written in a folder, and print what was done."""
    where = f"{language}: {kaldi.path.name}"
    texts, tables = restore_texts(kaldi, folder)
    for table in tables:
        print(f"{where}: the texts are those of {table}, with letter case and punctuation", file=sys.stderr)
    if tags := sum(map(has_tag, texts.values())):
        print(f"{where}: tags such as [unk] were removed from {tags} of {len(texts)} texts", file=sys.stderr)
    if recipe.lower:
        print(f"{where}: the texts are made lower case", file=sys.stderr)
    return replace(kaldi, text={utt: recipe.clean(text, language) for utt, text in texts.items()})


def prefixed(language: str, name: str) -> str:
    """Put the language before an id, unless it is there, so that ids of two languages never clash."""
    return name if name.startswith((f"{language}_", f"{language}-")) else f"{language}_{name}"


def locate(entry: str, places: Sequence[Path], of_recipe: bool = False) -> str | None:
    """Make an entry of wav.scp independent of the current directory.

    Args:
        entry: a path, an ark offset or a command (which remains as it is, unless a recipe wrote it).
        places: folders that a relative path may start from, in the order to try.
        of_recipe: a recipe wrote the entry in the first of these folders.

    Returns:
        The entry with an absolute path; None if a relative path exists in none of the places.
    """
    if entry.endswith("|"):
        return run_in_folder(entry, places[0]) if of_recipe else entry
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
    whole = KaldiDir(
        parts[0].path,
        segments={} if any(part.segments is not None for part in parts) else None,
        ids_given=all(part.ids_given for part in parts),
    )
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

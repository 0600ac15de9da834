"""Corpora of any languages, as a YAML file names them, brought together in data/train, data/dev and data/test_<language>."""

import difflib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import yaml

from espnet_lole.data.audio import split_ark
from espnet_lole.data.kaldi import KaldiDir, Segment, atomic_dir, write_table
from espnet_lole.data.recipes import KEYS, Recipe, limit
from espnet_lole.data.summary import NO_LANGUAGE, Tally, reasons

SETS = ("train", "dev", "test")


class _Loader(yaml.BaseLoader):
    """YAML whose scalars are all strings, so that the language `no` is not read as false, and whose keys differ."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Builds a mapping; a key that came before is an error, not a replacement."""
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' twice in one mapping", node.start_mark)
        return super().construct_mapping(node, deep)


class Source(NamedTuple):
    """One Kaldi directory of a corpus; language None means that its utt2lang says.

    With a recipe the path is the name of a set that the recipe prepares, until `prepared` gives the directory.
    """

    language: str | None
    split: str
    path: Path
    recipe: Recipe | None = None

    def prepared(self) -> "Source":
        """Returns the source with its directory, which its recipe makes if it has one and it is not there."""
        if self.recipe is None:
            return self
        recipe = self.recipe.found()
        return self._replace(path=recipe.prepare(str(self.path)), recipe=recipe)


def whisper_languages() -> dict[str, str]:
    """Returns Whisper's language codes and their English names."""
    from whisper.tokenizer import LANGUAGES

    return LANGUAGES


def check_language(code: str, where: str | Path) -> str:
    """Checks a language code against Whisper's.

    Args:
        code: the code.
        where: the file that says so, for the message.

    Returns:
        The code.

    Raises:
        ValueError: Whisper has no such language.
    """
    languages = whisper_languages()
    if code in languages:
        return code
    names = {name: known for known, name in languages.items()}
    low = code.lower()
    close = {known for known in languages if low.replace("_", "-").partition("-")[0] in (known, languages[known])}
    close |= {names.get(match, match) for match in difflib.get_close_matches(low, [*languages, *names], cutoff=0.6)}
    told = ", ".join(f"{known} ({languages[known]})" for known in sorted(close))
    hint = f"did you mean one of: {told}" if close else f"it knows: {', '.join(sorted(languages))}"
    raise ValueError(f"{where}: expected a Whisper language code, got '{code}'; {hint}")


def _mapping(value: object, keys: Sequence[str], where: str, required: bool) -> dict[str, object]:
    """Returns a YAML mapping after checking its keys."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{where}: expected a mapping with {', '.join(keys)}, got {value!r}; see conf/corpora/example.yaml")
    unknown = [str(key) for key in value if key not in keys]
    if unknown:
        raise ValueError(f"{where}: expected only the keys {', '.join(keys)}, got {', '.join(unknown)}; correct or remove them")
    wrong = [key for key in SETS if required and not (isinstance(value.get(key), str) and value[key])]
    if wrong:
        got = ", ".join(f"{key}: {value.get(key) or 'nothing'}" for key in wrong)
        raise ValueError(f"{where}: expected one directory for each of {', '.join(SETS)}, got {got}; name one")
    return value


def load_corpus(path: str | Path) -> tuple[Path, list[Source]]:
    """Reads a corpus file; the form is explained in conf/corpora/example.yaml.

    Args:
        path: the YAML file.

    Returns:
        The root that relative paths start from, and the directories it names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML of that form.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a corpus file at {path}, found none; write one after conf/corpora/example.yaml")
    try:
        with open(path, encoding="utf-8-sig") as file:
            loaded = yaml.load(file, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, got: {' '.join(str(error).split())}; correct the file") from error
    corpus = _mapping(loaded, ("root", "languages", "sets"), str(path), required=False)
    if ("languages" in corpus) == ("sets" in corpus):
        raise ValueError(f"{path}: expected either 'languages' or 'sets', got {', '.join(corpus)}; keep exactly one of them")
    root = Path(str(corpus.get("root") or "."))
    if "sets" in corpus:
        sets = _mapping(corpus["sets"], SETS, f"{path}: sets", required=True)
        return root, [Source(None, split, root / str(sets[split])) for split in SETS]
    languages = corpus["languages"]
    if not isinstance(languages, dict) or not languages:
        raise ValueError(
            f"{path}: expected 'languages' to map codes to directories, got {languages!r}; see conf/corpora/example.yaml"
        )
    sources = []
    for code, value in languages.items():
        where = f"{path}: languages: {code}"
        sets = _mapping(value, KEYS if isinstance(value, dict) and "recipe" in value else SETS, where, required=True)
        sources += _language_sources(check_language(code, path), sets, root, where)
    return root, sources


def _language_sources(language: str, sets: dict[str, str], root: Path, where: str) -> list[Source]:
    """Returns a language's sources; of a recipe, a split may have several sets with spaces between their names."""
    if "recipe" not in sets:
        return [Source(language, split, root / sets[split]) for split in SETS]
    recipe = Recipe.parse(sets, where)
    return [Source(language, split, Path(name), recipe) for split in SETS for name in sets[split].split()]


def prefixed(language: str, name: str) -> str:
    """Returns an id that starts with its language, so that the ids of two languages never clash."""
    return name if name.startswith((f"{language}_", f"{language}-")) else f"{language}_{name}"


def locate(entry: str, places: Sequence[Path], recipe: Recipe | None = None) -> str | None:
    """Makes a wav.scp entry independent of the current directory.

    Args:
        entry: a path, an ark offset or a command (returned as it is, but for a recipe's, which runs in its folder).
        places: where a relative path may start, in this order.
        recipe: whose entry it is.

    Returns:
        The entry with an absolute path; None if a relative path is in none of the places.
    """
    if entry.endswith("|"):
        return recipe.command(entry) if recipe else entry
    path, offset = split_ark(entry)
    if not os.path.isabs(path):
        found = next((place / path for place in places if (place / path).exists()), None)
        if found is None:
            return None
        path = os.path.abspath(found)
    return path if offset is None else f"{path}:{offset}"


def _add(table: dict, key: str, value: object, where: Path) -> None:
    """Adds a row; one id for two things is an error."""
    if table.setdefault(key, value) != value:
        raise ValueError(f"{where}: expected ids that differ, got '{key}' twice once the language is put before it; rename one")


def select(
    kaldi: KaldiDir, language: str, utts: Iterable[str], root: Path, recipe: Recipe | None = None
) -> tuple[KaldiDir, dict[str, str]]:
    """Takes one language's usable utterances out of a directory, under ids that start with the language.

    Args:
        kaldi: the directory.
        language: its code.
        utts: the language's utterances.
        root: where relative audio paths may start, besides the current directory, `kaldi` and its parent.
        recipe: that prepared it; its relative paths start in its folder, and its texts are cleaned.

    Returns:
        The part, and why each other utterance was dropped, under such an id too.

    Raises:
        ValueError: two ids become one, or nothing is usable.
    """
    here = Path(os.path.abspath(kaldi.path))
    places = (Path(os.path.abspath(".")), Path(os.path.abspath(root)), here, here.parent)
    if recipe is not None:
        places = (recipe.folder,)
        kaldi = replace(kaldi, text={utt: recipe.clean(text) for utt, text in kaldi.text.items()})
    part = KaldiDir(kaldi.path, {}, {}, {}, {}, None if kaldi.segments is None else {})
    kept, dropped = kaldi.usable(utts)
    for utt in kept:
        recording = kaldi.recording(utt)
        entry = locate(kaldi.wav[recording], places, recipe)
        if entry is None:
            dropped[utt] = f"audio not found: {kaldi.wav[recording]}"
            continue
        name = prefixed(language, utt)
        if name in part.text:
            raise ValueError(
                f"{kaldi.path}: expected ids that differ, got '{name}' twice once the language is put before; rename one"
            )
        _add(part.wav, prefixed(language, recording), entry, kaldi.path)
        part.text[name] = kaldi.text[utt]
        part.utt2spk[name] = prefixed(language, kaldi.speaker(utt))
        part.utt2lang[name] = language
        if part.segments is not None and kaldi.segments is not None:
            part.segments[name] = Segment(prefixed(language, recording), *kaldi.segments[utt][1:])
    if not part.text:
        raise ValueError(_nothing_usable(kaldi, language, dropped, places))
    return part, {prefixed(language, utt): why for utt, why in dropped.items()}


def _nothing_usable(kaldi: KaldiDir, language: str, dropped: dict[str, str], places: Sequence[Path]) -> str:
    """Returns the message for a directory without a usable utterance."""
    hint = "mend its text and wav.scp"
    sought = [why.partition(": ")[2] for why in dropped.values() if why.startswith("audio not found")]
    if sought:
        hint = f"looked for '{sought[0]}' in {', '.join(map(str, places))}; correct wav.scp or 'root'"
    return f"{kaldi.path}: expected utterances in '{language}', none is usable: {reasons(dropped) or 'it is empty'}; {hint}"


def merge(parts: Sequence[KaldiDir]) -> KaldiDir:
    """Joins parts into one directory; if only some have segments, the others' recordings become segments of their own.

    Args:
        parts: what `select` gave, of one set.

    Returns:
        The whole.
    """
    whole = KaldiDir(parts[0].path, {}, {}, {}, {}, {} if any(part.segments is not None for part in parts) else None)
    for part in parts:
        for name in ("wav", "text", "utt2spk", "utt2lang"):
            for key, value in getattr(part, name).items():
                _add(getattr(whole, name), key, value, part.path)
        if whole.segments is not None:
            own = part.segments
            whole.segments |= {utt: Segment(utt, 0.0, -1.0) for utt in part.text} if own is None else own
    return whole


def _by_language(source: Source, kaldi: KaldiDir) -> dict[str, list[str]]:
    """Returns language -> utterances of a directory."""
    if source.language is not None:
        return {source.language: kaldi.utterances()}
    if not kaldi.utt2lang:
        raise FileNotFoundError(
            f"expected a file {kaldi.path / 'utt2lang'} with a line per utterance, found none; write it, "
            "or name the corpus per language under 'languages'"
        )
    for code in sorted(set(kaldi.utt2lang.values())):
        check_language(code, kaldi.path / "utt2lang")
    groups: dict[str, list[str]] = {}
    for utt in kaldi.utterances():
        groups.setdefault(kaldi.utt2lang.get(utt, NO_LANGUAGE), []).append(utt)
    return groups


def collect(corpus: str | Path, datadir: str | Path, langs: Sequence[str] = ()) -> list[Tally]:
    """Writes datadir/train, datadir/dev (all languages) and datadir/test_<language>.

    Args:
        corpus: the YAML file.
        datadir: where to write.
        langs: the languages to take; all by default.

    Returns:
        What was kept and dropped of each language and set.

    Raises:
        FileNotFoundError: a directory or file does not exist.
        ValueError: the corpus file or a table is malformed, or a language is not there.
    """
    root, sources = load_corpus(corpus)
    parts: dict[str, list[KaldiDir]] = {}
    used: list[Source] = []
    hours: dict[str, float] = defaultdict(float)
    dropped: dict[str, dict[str, str]] = defaultdict(dict)
    found: dict[str, set[str]] = {split: set() for split in SETS}
    tallies = []
    for source in sources:
        if source.language is not None and langs and source.language not in langs:
            found[source.split].add(source.language)
            continue
        source = source.prepared()
        used.append(source)
        kaldi = KaldiDir.read(source.path)
        for language, utts in sorted(_by_language(source, kaldi).items()):
            name = f"test_{language}" if source.split == "test" else source.split
            if language == NO_LANGUAGE:
                why = dict.fromkeys(utts, "not in utt2lang")
                tallies.append(Tally(source.split, language, 0, 0, None, why))
                continue
            found[source.split].add(language)
            if langs and language not in langs:
                continue
            part, why = select(kaldi, language, utts, root, source.recipe)
            if source.recipe is not None and source.split == "train" and source.recipe.max_hours < float("inf"):
                beyond, seconds = limit(part, 3600 * (source.recipe.max_hours - hours[language]))
                hours[language] += seconds / 3600
                why |= beyond
            parts.setdefault(name, []).append(part)
            dropped[name] |= why
            speakers = len(set(part.utt2spk.values()))
            tallies.append(Tally(source.split, language, len(part.text), speakers, None, why, Path(datadir, name, "skipped")))
    _check_languages(langs, found, str(corpus))
    _write_all(parts, dropped, Path(datadir), used)
    return tallies


def _check_languages(langs: Sequence[str], found: dict[str, set[str]], where: str) -> None:
    """Raises if a set is empty, a wanted language is missing in one, or a language has no training data."""
    for split, have in found.items():
        if not have:
            raise ValueError(f"{where}: expected utterances in {split}, none is in its utt2lang; give each its language there")
        check_selected(langs, have, f"{where}: {split}")
        untrained = sorted((set(langs) & have if langs else have) - found["train"])
        if untrained:
            raise ValueError(
                f"{where}: expected training data in each language, got none in {', '.join(untrained)} of {split}; "
                "add it, or name the other languages with --langs"
            )


def check_selected(langs: Sequence[str], found: set[str], where: str) -> None:
    """Raises if a wanted language is not there.

    Args:
        langs: the wanted languages.
        found: those that are there.
        where: the place, for the message.

    Raises:
        ValueError: a wanted language is not there.
    """
    unknown = [code for code in langs if code not in found]
    if unknown:
        have = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{where}: expected languages out of {have}, got {', '.join(unknown)}; correct --langs")


def _write_all(
    parts: dict[str, list[KaldiDir]], dropped: dict[str, dict[str, str]], datadir: Path, sources: Sequence[Source]
) -> None:
    """Writes the sets and the lists of what was dropped; none takes its place before all are written."""
    inputs = {os.path.realpath(source.path) for source in sources}
    for name in parts:
        if os.path.realpath(datadir / name) in inputs:
            raise ValueError(
                f"expected outputs that differ from the inputs, got {datadir / name} for both; choose another --datadir"
            )
    with ExitStack() as stack:
        for name, own in parts.items():
            folder = stack.enter_context(atomic_dir(datadir / name))
            merge(own).write(folder)
            write_table(folder / "skipped", dropped[name])

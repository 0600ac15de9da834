"""Corpus files: YAML that names the data of each language and set, or a manifest alone."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from espnet_lole.data.lhotse import read_manifest
from espnet_lole.data.manifests import Row, is_manifest
from espnet_lole.data.recipes import OPTIONAL_KEYS, Recipe
from espnet_lole.languages import check_language, find_language

SETS = ("train", "dev", "test")
EXAMPLE = "conf/corpora/example.yaml"
SHARE = 0.05
"""Share of a manifest for dev and for test if it has no column `split`."""


class Source(NamedTuple):
    """What a corpus file names for one language and set.

    Attributes:
        language: code of Whisper.
        split: train, dev or test.
        paths: a Kaldi directory, a manifest, or data of `datasets`; with a recipe, names of sets in its folder `data`;
            empty for a share of the training set.
        recipe: the recipe of ESPnet that prepares them.
        share: share of the training set that is split off, if there are no paths.
        audio: folder in which relative paths of a manifest start.
    """

    language: str
    split: str
    paths: tuple[str, ...]
    recipe: Recipe | None = None
    share: float = 0.0
    audio: str = ""

    @property
    def output(self) -> str:
        """Name of the directory to write."""
        return f"test_{self.language}" if self.split == "test" else self.split


class _StringLoader(yaml.BaseLoader):
    """YAML loader that makes all scalars strings (the language `no` is not false) and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                message = f"the key '{key}' twice in one mapping"
                raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return super().construct_mapping(node, deep)


def check_selected(langs: Sequence[str], available: Collection[str], where: str | Path) -> None:
    """Check that the languages of --langs are available.

    Args:
        langs: the languages of --langs.
        available: those to choose from.
        where: the file that has them, for the message.

    Raises:
        ValueError: a language is not available.
    """
    unknown = [code for code in langs if code not in available]
    if unknown:
        known = ", ".join(sorted(available))
        raise ValueError(f"{where}: expected languages out of {known}, got {', '.join(unknown)}; correct --langs")


def languages_of(rows: Iterable[Row]) -> dict[str, str]:
    """Find Whisper's code for each language that a manifest names.

    Returns:
        The name as it is written there -> code of Whisper.

    Raises:
        ValueError: a row has no language, or Whisper lacks it.
    """
    found: dict[str, str] = {}
    for row in rows:
        if not row.language:
            raise ValueError(f"{row.where}: expected a language, got none; complete the line, or add a column language")
        if row.language not in found:
            found[row.language] = find_language(row.language, row.where)
    return found


def _check_mapping(
    value: object, kinds: Mapping[str, type], optional: Sequence[str], where: str | Path
) -> dict[str, Any]:
    """Return a YAML mapping after checking its keys, and that each has a value of its kind."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a mapping with the keys {', '.join(kinds)}, got {value!r}; see {EXAMPLE}")
    present = [key for key in {**kinds, **value} if key in value or key not in optional]
    wrong = [key for key in present if not (value.get(key) and isinstance(value[key], kinds.get(key, ())))]
    if wrong:
        got = ", ".join(f"{key}: {value.get(key) or 'nothing'}" for key in wrong)
        note = f" ({', '.join(optional)}: optional)" if optional else ""
        raise ValueError(f"{where}: expected one value for each of {', '.join(kinds)}{note}, got {got}; see {EXAMPLE}")
    return value


def load_corpus(path: str | Path) -> tuple[Path, list[Source]]:
    """Read a corpus file; conf/corpora/example.yaml explains its form.

    Args:
        path: the YAML file; or a manifest with a column for the language.

    Returns:
        The root of relative paths, and what the file names for each language and set.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not YAML of that form, or a manifest is malformed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a corpus file at {path}, but there is none; write one after {EXAMPLE}")
    if is_manifest(path):
        languages = dict.fromkeys(languages_of(read_manifest(Path(path))).values())
        return Path("."), [source for language in languages for source in _sources(language, str(path), Path("."))]
    try:
        with open(path, encoding="utf-8-sig") as file:
            loaded = yaml.load(file, Loader=_StringLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, got: {' '.join(str(error).split())}; correct the file") from error
    corpus = _check_mapping(loaded, {"languages": dict, "root": str}, ("root",), path)
    root, sources = Path(corpus.get("root", ".")), []
    for language, entry in corpus["languages"].items():
        check_language(language, path)
        where = f"{path}: languages: {language}"
        if isinstance(entry, str) and is_manifest(entry):
            sources += _sources(language, entry, root)
        elif isinstance(entry, dict) and "recipe" in entry:
            _check_mapping(entry, dict.fromkeys(("recipe", *SETS, *OPTIONAL_KEYS), str), OPTIONAL_KEYS, where)
            recipe = Recipe.parse(entry, where)
            sources += [_source(language, split, entry[split].split(), where, recipe=recipe) for split in SETS]
        else:
            _check_mapping(entry, dict.fromkeys((*SETS, "audio"), str), ("audio",), where)
            audio = entry.get("audio", "")
            sources += [_source(language, split, [entry[split]], where, audio=audio) for split in SETS]
    return root, sources


def _sources(language: str, manifest: str, root: Path) -> list[Source]:
    """Return the sets of a language in a manifest: by its column `split`, or else shares of it."""
    rows = read_manifest(root / manifest)
    if any(row.split for row in rows):
        return [Source(language, split, (manifest,)) for split in SETS]
    return [Source(language, "train", (manifest,)), *(Source(language, split, (), share=SHARE) for split in SETS[1:])]


def _source(language: str, split: str, paths: Sequence[str], where: str, **others: Any) -> Source:
    """Return a source of paths, or of a share of the training set where a number stands in their place."""
    try:
        share = float(paths[0])
    except ValueError:
        return Source(language, split, tuple(paths), **others)
    if split == "train" or not 0 < share < 0.5:
        raise ValueError(
            f"{where}: expected {split} to be data or, for dev and test, a share from 0 to 0.5, got {share}"
        )
    return Source(language, split, (), share=share)

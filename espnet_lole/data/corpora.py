"""Corpus files: YAML that names the Kaldi directories, or the recipe of ESPnet, of each language and set."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from espnet_lole.data.recipes import OPTIONAL_KEYS, Recipe
from espnet_lole.languages import check_language

SETS = ("train", "dev", "test")
EXAMPLE = "conf/corpora/example.yaml"


class Source(NamedTuple):
    """What a corpus file names for one language and set.

    Attributes:
        language: code of Whisper.
        split: train, dev or test.
        paths: the Kaldi directory; or, with a recipe, the names of the sets that it prepares.
        recipe: the recipe of ESPnet that prepares them.
    """

    language: str
    split: str
    paths: tuple[str, ...]
    recipe: Recipe | None = None

    def directories(self, root: Path) -> list[Path]:
        """Return the Kaldi directories, after their recipe has prepared them."""
        return [self.recipe.prepare(path) if self.recipe else root / path for path in self.paths]

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
        path: the YAML file.

    Returns:
        The root of relative paths, and what the file names for each language and set.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not YAML of that form.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a corpus file at {path}, but there is none; write one after {EXAMPLE}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            loaded = yaml.load(file, Loader=_StringLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, got: {' '.join(str(error).split())}; correct the file") from error
    corpus = _check_mapping(loaded, {"languages": dict, "root": str}, ("root",), path)
    sources = []
    for language, entry in corpus["languages"].items():
        check_language(language, path)
        where = f"{path}: languages: {language}"
        if isinstance(entry, dict) and "recipe" in entry:
            _check_mapping(entry, dict.fromkeys(("recipe", *SETS, *OPTIONAL_KEYS), str), OPTIONAL_KEYS, where)
            recipe = Recipe.parse(entry, where)
            sources += [Source(language, split, tuple(entry[split].split()), recipe) for split in SETS]
        else:
            _check_mapping(entry, dict.fromkeys(SETS, str), (), where)
            sources += [Source(language, split, (entry[split],)) for split in SETS]
    return Path(corpus.get("root", ".")), sources

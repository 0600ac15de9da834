"""Corpus files are read completely, or refused with the place of the mistake."""

from pathlib import Path

import pytest

from espnet_lole import languages
from espnet_lole.data import corpora
from espnet_lole.data.corpora import Source, load_corpus

REPO = Path(__file__).parents[2]
NAMES = {"de": "german", "en": "english", "es": "spanish", "no": "norwegian", "zh": "chinese"}


@pytest.fixture(autouse=True)
def _few_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a new folder, with a few languages so that Whisper is not imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(languages, "whisper_languages", lambda: NAMES)


def test_each_language_has_a_source_per_set() -> None:
    Path("corpus.yaml").write_text("root: /x\nlanguages:\n  no: {train: a, dev: b/c, test: /d}\n")
    root, sources = load_corpus("corpus.yaml")
    assert root == Path("/x")
    assert sources == [Source("no", "train", ("a",)), Source("no", "dev", ("b/c",)), Source("no", "test", ("/d",))]
    assert [source.directories(root) for source in sources] == [[Path("/x/a")], [Path("/x/b/c")], [Path("/d")]]
    assert [source.output for source in sources] == ["train", "dev", "test_no"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "corpus.yaml: expected a mapping with the keys languages, root, got"),
        ("a: [", "corpus.yaml: expected YAML, got"),
        ("languages: {de: {train: a, dev: b, test: c}}\nlang: x", "expected .* languages, root .*, got lang: x"),
        ("root: x", "got languages: nothing"),
        ("root: [x]\nlanguages: {}", r"got languages: nothing, root: \['x'\]"),
        ("sets: {train: a, dev: b, test: c}", "got languages: nothing, sets:"),
        ("languages: {de: {train: a, dev: b}}", "languages: de: expected one value for each of .*, got test: nothing"),
        ("languages: {de: {train: [a, b], dev: b, test: c}}", r"got train: \['a', 'b'\]"),
        ("languages:\n  de: {}\n  de: {}", "expected YAML, got: the key 'de' twice in one mapping in .*line 2"),
        ("languages: de", "got languages: de"),
        ("languages: {de: x}", "languages: de: expected a mapping with the keys train, dev, test, got 'x'"),
        ("languages: {de: {train: a, dev: b, tests: c}}", "languages: de: .* got test: nothing, tests: c"),
        ("languages: {deu: {train: a, dev: b, test: c}}", r"got 'deu'; did you mean one of: de \(german\)"),
    ],
)
def test_a_mistake_in_a_corpus_file_is_named(content: str, message: str) -> None:
    Path("corpus.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_corpus("corpus.yaml")


def test_a_missing_corpus_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="expected a corpus file at none.yaml"):
        load_corpus("none.yaml")


@pytest.mark.parametrize(("name", "number"), [("lole_mini", 8), ("example", 2), ("paper", 8)])
def test_shipped_corpus_files_are_read(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "check_language", lambda code, where: None)
    assert len(load_corpus(REPO / f"conf/corpora/{name}.yaml")[1]) == 3 * number

"""Corpus files are read completely, or refused with the place of the mistake."""

from pathlib import Path

import pytest

from espnet_lole import languages
from espnet_lole.data import corpora
from espnet_lole.data.corpora import Source, languages_of, load_corpus
from espnet_lole.data.manifests import Row

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
        ("languages: {de: x}", "languages: de: expected a mapping with the keys train, dev, test, audio, got 'x'"),
        ("languages: {de: {train: a, dev: b, tests: c}}", "languages: de: .* got test: nothing, tests: c"),
        ("languages: {de: {train: 0.9, dev: b, test: c}}", "de: expected train to be data or, .*, got 0.9"),
        ("languages: {de: {train: a, dev: 1, test: c}}", "de: expected dev to be data or, .* from 0 to 0.5, got 1.0"),
        ("languages: {deu: {train: a, dev: b, test: c}}", r"got 'deu'; did you mean one of: de \(german\)"),
    ],
)
def test_a_mistake_in_a_corpus_file_is_named(content: str, message: str) -> None:
    Path("corpus.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_corpus("corpus.yaml")


MANIFEST = "path,text,language{0}\na.wav,ja,de-DE{1}\nb.wav,si,Spanish{2}\nc.wav,nein,de{1}\n"


def sources(*languages: str, manifest: str, split: bool) -> list[Source]:
    """Return the sources of a manifest, by its column `split` or by shares."""
    given = {split: ((manifest,), 0.0) for split in ("train", "dev", "test")}
    shares = {"train": ((manifest,), 0.0), "dev": ((), 0.05), "test": ((), 0.05)}
    made = (given if split else shares).items()
    return [Source(language, name, paths, share=share) for language in languages for name, (paths, share) in made]


@pytest.mark.parametrize("split", [True, False])
def test_a_manifest_alone_is_a_corpus_of_the_languages_in_it(split: bool) -> None:
    Path("m.csv").write_text(MANIFEST.format(*((",split", ",train", ",dev") if split else ("", "", ""))))
    assert load_corpus("m.csv") == (Path("."), sources("de", "es", manifest="m.csv", split=split))
    Path("x").mkdir()
    Path("m.csv").rename("x/m.csv")
    Path("corpus.yaml").write_text("root: x\nlanguages: {de: m.csv}\n")
    assert load_corpus("corpus.yaml") == (Path("x"), sources("de", manifest="m.csv", split=split))


def test_a_share_of_the_training_set_stands_in_the_place_of_a_path() -> None:
    Path("corpus.yaml").write_text("languages: {de: {train: a.tsv, dev: 0.1, test: b.tsv, audio: clips}}")
    expected = [Source("de", "train", ("a.tsv",), audio="clips"), Source("de", "dev", (), share=0.1)]
    assert load_corpus("corpus.yaml")[1] == [*expected, Source("de", "test", ("b.tsv",), audio="clips")]


def test_the_languages_of_a_manifest_are_codes_with_or_without_a_region_or_names(monkeypatch) -> None:
    monkeypatch.setattr(languages, "whisper_languages", lambda: NAMES | {"yue": "cantonese"})
    names = {"de": "de", "DE_at": "de", "Spanish": "es", "zh-CN": "zh", "zh-TW": "zh", "zh-HK": "yue"}
    assert languages_of([Row("m.csv:2", "a.wav", "ja", name) for name in names]) == names


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.wav,ja,\n", "m.csv:2: expected a language, got none"),
        ("a.wav,ja,de\nb.wav,ja,deu\n", r"m.csv:3: .*got 'deu'; did you mean one of: de \(german\)"),
    ],
)
def test_a_row_without_a_language_of_whisper_is_named(rows: str, message: str) -> None:
    Path("m.csv").write_text("path,text,language\n" + rows)
    with pytest.raises(ValueError, match=message):
        load_corpus("m.csv")


def test_a_missing_corpus_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="expected a corpus file at none.yaml"):
        load_corpus("none.yaml")


@pytest.mark.parametrize(("name", "number"), [("lole_mini", 8), ("example", 4), ("paper", 8)])
def test_shipped_corpus_files_are_read(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "check_language", lambda code, where: None)
    assert len(load_corpus(REPO / f"conf/corpora/{name}.yaml")[1]) == 3 * number

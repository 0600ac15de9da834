"""From corpus files to the recipe's sets, through the command line and the functions."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet_lole.bin.lole_data import main
from espnet_lole.data import corpora
from espnet_lole.data.corpora import check_language, collect, load_corpus
from espnet_lole.data.kaldi import read_table, write_table
from espnet_lole.data.summary import Tally

REPO = Path(__file__).parents[2]
NAMES = {"de": "german", "en": "english", "es": "spanish", "no": "norwegian", "zh": "chinese"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs each test in its own folder, with a few languages so that Whisper is not imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpora, "whisper_languages", lambda: NAMES)


def make(path: str, **tables: dict[str, str]) -> Path:
    """Writes a Kaldi directory with the utterances a and b, replacing some tables."""
    folder = Path(path)
    folder.mkdir(parents=True)
    default = {"wav.scp": {"a": "/a.wav", "b": "/b.wav"}, "text": {"a": "eins", "b": "zwei"}, "utt2spk": {"a": "s", "b": "s"}}
    for name, table in (default | {name.replace("_", "."): table for name, table in tables.items()}).items():
        write_table(folder / name, table)
    return folder


def corpus(**content: object) -> str:
    """Writes corpus.yaml."""
    Path("corpus.yaml").write_text(yaml.safe_dump(content))
    return "corpus.yaml"


def two_languages(**tables: dict[str, str]) -> str:
    """Makes German and Norwegian directories with the same ids; returns their corpus file."""
    sets = {lang: {name: f"in/{name}_{lang}" for name in ("train", "dev", "test")} for lang in ("de", "no")}
    for each in sets.values():
        for path in each.values():
            make(path, **tables)
    return corpus(languages=sets)


def test_collect_brings_languages_together_under_their_prefix() -> None:
    tallies = collect(two_languages(), "data")
    assert tallies[0] == Tally("train", "de", 2, 1, None, {}, Path("data/train/skipped")) and len(tallies) == 6
    assert read_table("data/train/text") == {"de_a": "eins", "de_b": "zwei", "no_a": "eins", "no_b": "zwei"}
    assert read_table("data/train/utt2lang") == {"de_a": "de", "de_b": "de", "no_a": "no", "no_b": "no"}
    assert read_table("data/train/spk2utt") == {"de_s": "de_a de_b", "no_s": "no_a no_b"}
    assert sorted(path.name for path in Path("data").iterdir()) == ["dev", "test_de", "test_no", "train"]
    assert set(read_table("data/test_no/wav.scp")) == {"no_a", "no_b"}


def test_collect_takes_some_languages() -> None:
    collect(two_languages(), "data", ["no"])
    assert sorted(path.name for path in Path("data").iterdir()) == ["dev", "test_no", "train"]
    assert set(read_table("data/train/utt2lang").values()) == {"no"}
    with pytest.raises(ValueError, match="expected languages out of de, no, got en"):
        collect("corpus.yaml", "data", ["en"])


def test_prefix_is_not_doubled_and_a_clash_is_an_error() -> None:
    wav, text = {"de_a": "/a", "de-b": "/b"}, {"de_a": "x", "de-b": "y"}
    collect(two_languages(wav_scp=wav, text=text, utt2spk={}), "data", ["de"])
    assert read_table("data/train/utt2spk") == {"de_a": "de_a", "de-b": "de-b"}
    write_table("in/dev_de/wav.scp", {"a": "/a", "de_a": "/b"})
    write_table("in/dev_de/text", {"a": "x", "de_a": "y"})
    with pytest.raises(ValueError, match="in/dev_de: expected ids that differ, got 'de_a' twice"):
        collect("corpus.yaml", "data2")
    assert not Path("data2").exists()


def test_recordings_that_clash_are_an_error() -> None:
    segments = {"a": "r 0 1", "b": "de_r 0 1"}
    path = two_languages(wav_scp={"r": "/r.wav", "de_r": "/q.wav"}, segments=segments)
    with pytest.raises(ValueError, match="expected ids that differ, got 'de_r' twice"):
        collect(path, "data")


def test_collect_splits_mixed_sets_by_utt2lang() -> None:
    sets = {name: f"mixed/{name}" for name in ("train", "dev", "test")}
    for name in sets.values():
        make(f"root/{name}", utt2lang={"a": "de"} if name == "mixed/dev" else {"a": "de", "b": "en"})
    tallies = collect(corpus(root="root", sets=sets), "data")
    assert Tally("dev", "?", 0, 0, None, {"b": "not in utt2lang"}) in tallies
    assert read_table("data/train/text") == {"de_a": "eins", "en_b": "zwei"}
    assert read_table("data/test_en/text") == {"en_b": "zwei"}
    write_table("root/mixed/test/utt2lang", {"a": "de", "b": "zh-CN"})
    with pytest.raises(ValueError, match=r"test/utt2lang: .*got 'zh-CN'; did you mean one of: zh \(chinese\)"):
        collect("corpus.yaml", "data")
    Path("root/mixed/test/utt2lang").unlink()
    with pytest.raises(FileNotFoundError, match="utt2lang with a line per utterance"):
        collect("corpus.yaml", "data")


def test_dropped_utterances_are_listed_with_their_reason() -> None:
    path = two_languages(text={"a": "eins", "b": "", "c": "drei"})
    why = {"de_b": "empty transcript", "de_c": "not in wav.scp"}
    assert collect(path, "data")[0] == Tally("train", "de", 1, 1, None, why, Path("data/train/skipped"))
    assert read_table("data/train/skipped") == why | {"no_b": "empty transcript", "no_c": "not in wav.scp"}
    assert read_table("data/test_no/skipped") == {"no_b": "empty transcript", "no_c": "not in wav.scp"}


def test_relative_paths_arks_and_pipes_are_made_absolute(tmp_path: Path) -> None:
    wav = {"a": "x/a.wav", "b": "b.ark:7", "c": "up.wav", "d": "cat rel.wav |", "e": "gone.wav", "f": "both.wav"}
    sets = {name: name for name in ("train", "dev", "test")}
    for name in sets:
        make(f"root/{name}", wav_scp=wav, text=dict.fromkeys(wav, "x"), utt2spk={}, utt2lang=dict.fromkeys(wav, "de"))
    for place in ("x/a.wav", "root/train/b.ark", "root/up.wav", "both.wav", "root/both.wav"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).touch()
    assert collect(corpus(root="root", sets=sets), "data")[0].dropped == {"de_e": "audio not found: gone.wav"}
    found = {"de_a": "x/a.wav", "de_b": "root/train/b.ark:7", "de_c": "root/up.wav", "de_f": "both.wav"}
    expected = {utt: str(tmp_path / entry) for utt, entry in found.items()} | {"de_d": "cat rel.wav |"}
    assert read_table("data/train/wav.scp") == expected


def test_no_audio_at_all_tells_where_it_was_looked_for() -> None:
    message = r"none is usable: 2 audio not found \(a, ...\); looked for 'gone.wav' in /.*; correct wav.scp or 'root'"
    with pytest.raises(ValueError, match=message):
        collect(two_languages(wav_scp={"a": "gone.wav", "b": "gone.wav"}), "data")
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"a": "", "b": ""}, r"2 empty transcript \(a, ...\); mend its text and wav.scp"),
        ({"x": "eins"}, r"2 not in text \(a, ...\), 1 not in wav.scp \(x\); mend"),
    ],
)
def test_a_set_that_becomes_empty_is_an_error_until_it_is_mended(text: dict[str, str], message: str) -> None:
    path = two_languages()
    write_table("in/dev_no/text", text)
    with pytest.raises(ValueError, match=f"in/dev_no: expected utterances in 'no', none is usable: {message}"):
        collect(path, "data")
    assert not Path("data").exists()
    write_table("in/dev_no/text", {"a": "en", "b": "to"})
    assert len(collect(path, "data")) == 6


def test_an_empty_directory_is_an_error() -> None:
    empty = {"wav_scp": {}, "text": {}, "utt2spk": {}}
    with pytest.raises(ValueError, match="none is usable: it is empty"):
        collect(two_languages(**empty), "data")


def test_mixed_sets_without_a_language_or_without_training_data_are_errors() -> None:
    sets = {name: f"mixed/{name}" for name in ("train", "dev", "test")}
    for name in sets.values():
        make(name, utt2lang={"a": "de", "b": "en"})
    write_table("mixed/train/utt2lang", {"a": "de"})
    with pytest.raises(ValueError, match="expected training data in each language, got none in en of dev"):
        collect(corpus(sets=sets), "data")
    assert len(collect("corpus.yaml", "data", ["de"])) == 4
    write_table("mixed/dev/utt2lang", {"x": "de"})
    with pytest.raises(ValueError, match="expected utterances in dev, none is in its utt2lang"):
        collect("corpus.yaml", "data2")
    assert not Path("data2").exists()


def test_files_with_byte_order_mark_and_carriage_returns() -> None:
    path = two_languages(utt2lang={"a": "de", "b": "de"})
    for file in [*Path("in").glob("*/*"), Path(path)]:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    collect(path, "data")
    assert Path("data/test_de/wav.scp").read_bytes() == b"de_a /a.wav\nde_b /b.wav\n"
    assert read_table("data/test_de/text") == {"de_a": "eins", "de_b": "zwei"}


def test_segments_of_one_language_do_not_disturb_the_other() -> None:
    path = two_languages()
    write_table("in/train_de/wav.scp", {"r": "/r.wav"})
    write_table("in/train_de/segments", {"a": "r 0.5 1", "b": "r 1 -1"})
    collect(path, "data")
    segments = {"de_a": "de_r 0.5 1.0", "de_b": "de_r 1.0 -1.0", "no_a": "no_a 0.0 -1.0", "no_b": "no_b 0.0 -1.0"}
    assert read_table("data/train/segments") == segments
    assert not Path("data/dev/segments").exists()


def test_inputs_are_not_overwritten() -> None:
    for name in ("train", "dev", "test"):
        make(f"data/{name}", utt2lang={"a": "de", "b": "de"})
    with pytest.raises(ValueError, match="expected outputs that differ from the inputs"):
        collect(corpus(sets={name: f"data/{name}" for name in ("train", "dev", "test")}), "data")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "expected a mapping with root, languages, sets"),
        ("a: [", "expected YAML, got"),
        ("sets: {train: a, dev: b, test: c}\nlang: x", "expected only the keys root, languages, sets, got lang"),
        ("root: x", "expected either 'languages' or 'sets', got root"),
        ("sets: {train: a, dev: b}", "sets: expected one directory for each of train, dev, test, got test: nothing; name one"),
        ("sets: {train: [a, b], dev: b, test: c}", r"expected one directory .* got train: \['a', 'b'\]; name one"),
        ("languages:\n  de: {}\n  de: {}", "corpus.yaml: expected YAML, got: the key 'de' twice in one mapping in .*line 2"),
        ("languages: de", "expected 'languages' to map codes to directories, got 'de'"),
        ("languages: {de: {train: a, dev: b, tests: c}}", "languages: de: expected only the keys train, dev, test, got tests"),
        ("languages: {deu: {train: a, dev: b, test: c}}", r"got 'deu'; did you mean one of: de \(german\)"),
    ],
)
def test_malformed_corpus_files(content: str, message: str) -> None:
    Path("corpus.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_corpus("corpus.yaml")


def test_missing_corpus_file() -> None:
    with pytest.raises(FileNotFoundError, match="expected a corpus file at none.yaml"):
        load_corpus("none.yaml")


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("zh-CN", "mean one of: zh"),
        ("German", "mean one of: de"),
        ("es_mx", "mean one of: es"),
        ("qq", "it knows: de, en, es, no, zh"),
    ],
)
def test_unknown_language_lists_close_ones(code: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"where: .*got '{code}'; .*{hint}"):
        check_language(code, "where")


@pytest.mark.parametrize("name", ["lole_mini", "example"])
def test_shipped_corpus_files_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "check_language", lambda code, where: code)
    assert len(load_corpus(REPO / f"conf/corpora/{name}.yaml")[1]) == {"lole_mini": 24, "example": 6}[name]


def test_command_line_runs_all_three(capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("ok.wav", np.zeros(3200), 16000)
    path = two_languages(wav_scp={"a": "ok.wav", "b": "/gone.wav"})
    main(["collect", "--corpus", path, "--datadir", "data", "--langs", "de no"])
    assert "total |    4   2       0 |    4   2       0 |    4   2       0\n" in capsys.readouterr().out
    main(["format", "--src", "data/train", "data/dev", "--dst", "dump/org/train", "dump/org/dev", "--nj", "2"])
    told = capsys.readouterr().out
    assert told.count("lang ") == 1 and "no    |    1 0.0   1       1 |    1 0.0   1       1\n" in told
    assert "dropped from no dev: 1 missing file (no_b); all listed in dump/org/dev/skipped\n" in told
    main(["filter", "--src", "dump/org/train", "dump/org/dev", "--dst", "dump/train", "dump/dev", "--langs", "no"])
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "lang  | utts min spk dropped | utts min spk dropped" and len(told) == 4
    assert set(read_table("dump/dev/utt2lang")) == {"no_a"}


def test_command_line_tells_a_mistake_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for source, message in ((["none"], "expected a Kaldi directory at none"), (["a", "b"], "expected a --dst for each --src")):
        with pytest.raises(SystemExit, match="1"):
            main(["format", "--src", *source, "--dst", "dump"])
        err = capsys.readouterr().err
        assert err.startswith(f"error: {message}") and err.count("\n") == 1

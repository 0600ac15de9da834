"""From corpus files to the recipe's sets, through the command line and the functions."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet_lole.bin.lole_data import main
from espnet_lole.data import corpora
from espnet_lole.data.audio import format_dir
from espnet_lole.data.corpora import check_language, collect, filter_dir, load_corpus
from espnet_lole.data.kaldi import KaldiDir, read_table, write_table

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
    lines = collect(two_languages(), "data")
    assert lines[0] == "de train: 2 utterances, 1 speakers" and len(lines) == 6
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
    lines = collect(corpus(root="root", sets=sets), "data")
    assert "? dev: skipped 1 (not in utt2lang)" in lines
    assert read_table("data/train/text") == {"de_a": "eins", "en_b": "zwei"}
    assert read_table("data/test_en/text") == {"en_b": "zwei"}
    write_table("root/mixed/test/utt2lang", {"a": "de", "b": "zh-CN"})
    with pytest.raises(ValueError, match=r"test/utt2lang: .*got 'zh-CN'; did you mean one of: zh \(chinese\)"):
        collect("corpus.yaml", "data")
    Path("root/mixed/test/utt2lang").unlink()
    with pytest.raises(FileNotFoundError, match="utt2lang with a line per utterance"):
        collect("corpus.yaml", "data")


def test_skipped_utterances_are_counted_by_reason() -> None:
    path = two_languages(text={"a": "eins", "b": "", "c": "drei"})
    told = "de train: 1 utterances, 1 speakers, skipped 2 (1 empty transcript, 1 not in wav.scp)"
    assert collect(path, "data")[0] == told


def test_relative_paths_arks_and_pipes_are_made_absolute(tmp_path: Path) -> None:
    wav = {"a": "x/a.wav", "b": "b.ark:7", "c": "up.wav", "d": "cat rel.wav |", "e": "gone.wav", "f": "both.wav"}
    sets = {name: name for name in ("train", "dev", "test")}
    for name in sets:
        make(f"root/{name}", wav_scp=wav, text=dict.fromkeys(wav, "x"), utt2spk={}, utt2lang=dict.fromkeys(wav, "de"))
    for place in ("x/a.wav", "root/train/b.ark", "root/up.wav", "both.wav", "root/both.wav"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).touch()
    lines = collect(corpus(root="root", sets=sets), "data")
    assert "skipped 1 (1 audio not found)" in lines[0]
    found = {"de_a": "x/a.wav", "de_b": "root/train/b.ark:7", "de_c": "root/up.wav", "de_f": "both.wav"}
    expected = {utt: str(tmp_path / entry) for utt, entry in found.items()} | {"de_d": "cat rel.wav |"}
    assert read_table("data/train/wav.scp") == expected


def test_no_audio_at_all_tells_where_it_was_looked_for() -> None:
    with pytest.raises(ValueError, match=r"none is usable \(2 audio not found\); looked for 'gone.wav' in /"):
        collect(two_languages(wav_scp={"a": "gone.wav", "b": "gone.wav"}), "data")
    assert not Path("data").exists()


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
        ("sets: {train: a, dev: b}", "sets: expected a directory for each of train, dev, test, got none for test"),
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


def formatted(seconds: dict[str, float]) -> Path:
    """Formats utterances `<lang>_x` of these lengths."""
    Path("wav").mkdir()
    for utt, length in seconds.items():
        soundfile.write(f"wav/{utt}.wav", np.zeros(round(length * 16000)), 16000)
    tables = ({utt: f"wav/{utt}.wav" for utt in seconds}, dict.fromkeys(seconds, "x"), {}, {utt: utt[:2] for utt in seconds})
    folder = Path("src")
    folder.mkdir()
    KaldiDir(folder, *tables).write(folder)
    format_dir(folder, "org")
    return Path("org")


def test_filter_keeps_lengths_and_languages() -> None:
    org = formatted({"de_a": 0.05, "de_b": 0.1, "de_c": 0.3, "de_d": 0.4, "en_a": 0.2})
    lines = filter_dir(org, "kept", 0.1, 0.3, ["de"])
    assert lines == ["de: kept 2 utterances, 0.00 h; dropped 2 by length", "dropped 1 utterances of other languages"]
    assert read_table("kept/utt2num_samples") == {"de_b": "1600", "de_c": "4800"}
    assert sorted(path.name for path in Path("kept").iterdir()) == (
        "audio_format feats_type spk2utt text utt2lang utt2num_samples utt2spk wav.scp".split()
    )


def test_filter_errors() -> None:
    org = formatted({"de_a": 0.05, "en_a": 0.2})
    with pytest.raises(ValueError, match=r"expected utterances in 'de' of 0.1 to 30 s, got none of 1"):
        filter_dir(org, "kept", 0.1, 30)
    with pytest.raises(ValueError, match="expected 0 <= min_wav_duration <= max_wav_duration, got 2 and 1"):
        filter_dir(org, "kept", 2, 1)
    with pytest.raises(ValueError, match="expected languages out of de, en, got fr"):
        filter_dir(org, "kept", 0, 30, ["fr"])
    with pytest.raises(ValueError, match="expected dst to differ from src"):
        filter_dir(org, org, 0, 30)
    with pytest.raises(FileNotFoundError, match="lole_data format"):
        filter_dir("src", "kept", 0, 30)
    write_table(org / "utt2num_samples", {"de_a": "x"})
    with pytest.raises(ValueError, match="expected a number of samples for 'de_a', got 'x'"):
        filter_dir(org, "kept", 0, 30)
    (org / "utt2lang").write_text("")
    write_table(org / "utt2num_samples", {"de_a": "1"})
    with pytest.raises(ValueError, match="expected utterances with a language"):
        filter_dir(org, "kept", 0, 30)
    assert not Path("kept").exists()


def test_command_line_runs_all_three(capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("ok.wav", np.zeros(3200), 16000)
    path = two_languages(wav_scp={"a": "ok.wav", "b": "/gone.wav"})
    main(["collect", "--corpus", path, "--datadir", "data", "--langs", "de no"])
    main(["format", "--src", "data/train", "--dst", "dump/org/train", "--nj", "2"])
    main(["filter", "--src", "dump/org/train", "--dst", "dump/train"])
    out, err = capsys.readouterr()
    assert "dump/org/train: 2 utterances" in out and "no: kept 1 utterances" in out
    assert "warning: 2 of 4 utterances skipped (2 missing file), see dump/org/train/skipped" in err


def test_command_line_tells_a_mistake_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["format", "--src", "none", "--dst", "dump"])
    err = capsys.readouterr().err
    assert err.startswith("error: expected a Kaldi directory at none") and err.count("\n") == 1

"""The directories of a corpus become sets with unique ids and absolute paths, or an error leaves nothing behind."""

from pathlib import Path

import pytest
import yaml

from espnet_lole import languages
from espnet_lole.data.collecting import collect
from espnet_lole.data.kaldi import read_table, write_table
from espnet_lole.data.summary import Tally

SETS = ("train", "dev", "test")


@pytest.fixture(autouse=True)
def _few_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a new folder, with a few languages so that Whisper is not imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(languages, "whisper_languages", lambda: {"de": "german", "en": "english", "no": "norwegian"})


def make(path: str, utts: str = "ab", **tables: dict[str, str]) -> None:
    """Write a Kaldi directory with two utterances, replacing some tables."""
    folder = Path(path)
    folder.mkdir(parents=True)
    text = dict(zip(utts, ("eins", "zwei"), strict=True))
    tables = {"wav_scp": {utt: f"/{utt}.wav" for utt in utts}, "text": text, **tables}
    for name, table in {"utt2spk": dict.fromkeys(utts, "s"), **tables}.items():
        write_table(folder / name.replace("_", "."), table)


def corpus(*languages: str, root: str = "in", **tables: dict[str, str]) -> str:
    """Write corpus.yaml and the directories root/<set>_<language>, which have the same ids in all languages.

    The tables are those of the training set; dev has the utterances j and k, test x and y.
    """
    for lang in languages:
        make(f"{root}/train_{lang}", **tables)
        make(f"{root}/dev_{lang}", "jk")
        make(f"{root}/test_{lang}", "xy")
    entries = {lang: {name: f"{name}_{lang}" for name in SETS} for lang in languages}
    Path("corpus.yaml").write_text(yaml.safe_dump({"root": root, "languages": entries}))
    return "corpus.yaml"


def test_languages_are_collected_under_their_prefix() -> None:
    tallies = collect(corpus("de", "no"), "data")
    assert tallies[0] == Tally("train", "de", 2, 1, None, {}, Path("data/train/skipped")) and len(tallies) == 6
    assert read_table("data/train/text") == {"de_a": "eins", "de_b": "zwei", "no_a": "eins", "no_b": "zwei"}
    assert read_table("data/train/utt2lang") == {"de_a": "de", "de_b": "de", "no_a": "no", "no_b": "no"}
    assert read_table("data/train/spk2utt") == {"de_s": "de_a de_b", "no_s": "no_a no_b"}
    assert sorted(path.name for path in Path("data").iterdir()) == ["dev", "test_de", "test_no", "train"]
    assert set(read_table("data/test_no/wav.scp")) == {"no_x", "no_y"}


def test_some_languages_of_a_corpus_can_be_selected() -> None:
    collect(corpus("de", "no"), "data", ["no"])
    assert sorted(path.name for path in Path("data").iterdir()) == ["dev", "test_no", "train"]
    assert set(read_table("data/train/utt2lang").values()) == {"no"}
    with pytest.raises(ValueError, match="corpus.yaml: expected languages out of de, no, got en; correct --langs"):
        collect("corpus.yaml", "data", ["en"])


def test_a_prefix_is_not_repeated_and_a_clash_is_an_error() -> None:
    wav, text = {"de_a": "/a", "de-b": "/b"}, {"de_a": "x", "de-b": "y"}
    collect(corpus("de", wav_scp=wav, text=text, utt2spk={}), "data")
    assert read_table("data/train/utt2spk") == {"de_a": "de_a", "de-b": "de-b"}
    write_table("in/dev_de/wav.scp", {"j": "/j", "de_j": "/j"})
    write_table("in/dev_de/text", {"j": "x", "de_j": "y"})
    with pytest.raises(ValueError, match="in/dev_de: duplicate id 'de_j' after adding the language prefix; rename one"):
        collect("corpus.yaml", "data2")
    assert not Path("data2").exists()


def test_recordings_that_clash_are_an_error() -> None:
    path = corpus("de", wav_scp={"r": "/r.wav", "de_r": "/q.wav"}, segments={"a": "r 0 1", "b": "de_r 0 1"})
    with pytest.raises(ValueError, match="duplicate id 'de_r'"):
        collect(path, "data")


def test_dropped_utterances_are_listed_with_their_reason() -> None:
    path = corpus("de", "no", text={"a": "eins", "b": "", "c": "drei"})
    dropped = {"de_b": "empty transcript", "de_c": "not in wav.scp"}
    assert collect(path, "data")[0] == Tally("train", "de", 1, 1, None, dropped, Path("data/train/skipped"))
    assert read_table("data/train/skipped") == dropped | {"no_b": "empty transcript", "no_c": "not in wav.scp"}
    assert not read_table("data/test_no/skipped")


def test_relative_paths_arks_and_pipes_are_made_absolute(tmp_path: Path) -> None:
    wav = {"a": "x/a.wav", "b": "b.ark:7", "c": "up.wav", "d": "cat rel.wav |", "e": "gone.wav", "f": "both.wav"}
    path = corpus("de", root="root", wav_scp=wav, text=dict.fromkeys(wav, "x"), utt2spk={})
    for place in ("x/a.wav", "root/train_de/b.ark", "root/up.wav", "both.wav", "root/both.wav"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).touch()
    assert collect(path, "data")[0].dropped == {"de_e": "audio not found: gone.wav"}
    paths = {"de_a": "x/a.wav", "de_b": "root/train_de/b.ark:7", "de_c": "root/up.wav", "de_f": "both.wav"}
    expected = {utt: str(tmp_path / entry) for utt, entry in paths.items()} | {"de_d": "cat rel.wav |"}
    assert read_table("data/train/wav.scp") == expected


def test_a_set_without_any_audio_names_the_places_that_were_searched() -> None:
    message = r"none is usable: 2 audio not found \(a, ...\); looked for 'gone.wav' in /.*; correct wav.scp or 'root'"
    with pytest.raises(ValueError, match=message):
        collect(corpus("de", wav_scp={"a": "gone.wav", "b": "gone.wav"}), "data")
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"j": "", "k": ""}, r"2 empty transcript \(j, ...\); correct its text and wav.scp"),
        ({"z": "eins"}, r"2 not in text \(j, ...\), 1 not in wav.scp \(z\); correct"),
    ],
)
def test_a_set_that_loses_all_utterances_is_an_error_until_it_is_corrected(text: dict[str, str], message: str) -> None:
    path = corpus("de", "no")
    write_table("in/dev_no/text", text)
    with pytest.raises(ValueError, match=f"in/dev_no: expected utterances in 'no', none is usable: {message}"):
        collect(path, "data")
    assert not Path("data").exists()
    write_table("in/dev_no/text", {"j": "en", "k": "to"})
    assert len(collect(path, "data")) == 6


def test_an_empty_directory_is_an_error() -> None:
    with pytest.raises(ValueError, match="none is usable: it is empty"):
        collect(corpus("de", wav_scp={}, text={}, utt2spk={}), "data")


def test_byte_order_marks_and_carriage_returns_are_accepted() -> None:
    path = corpus("de")
    for file in [*Path("in").glob("*/*"), Path(path)]:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    collect(path, "data")
    assert Path("data/test_de/wav.scp").read_bytes() == b"de_x /x.wav\nde_y /y.wav\n"
    assert read_table("data/test_de/text") == {"de_x": "eins", "de_y": "zwei"}


def test_segments_of_one_language_do_not_disturb_the_other() -> None:
    path = corpus("de", "no")
    write_table("in/train_de/wav.scp", {"r": "/r.wav"})
    write_table("in/train_de/segments", {"a": "r 0.5 1", "b": "r 1 -1"})
    collect(path, "data")
    segments = {"de_a": "de_r 0.5 1.0", "de_b": "de_r 1.0 -1.0", "no_a": "no_a 0.0 -1.0", "no_b": "no_b 0.0 -1.0"}
    assert read_table("data/train/segments") == segments
    assert not Path("data/dev/segments").exists()


def test_inputs_are_not_overwritten() -> None:
    path = corpus("de")
    content = Path(path).read_text()
    Path(path).write_text(content.replace("test_de", "train"))
    make("in/train")
    with pytest.raises(ValueError, match="in/test_de exists, and holds files"):
        collect(path, "in")


def manifest(name: str, *rows: str, header: str = "path,text,language,speaker") -> str:
    """Write a CSV whose audio files exist."""
    Path(name).write_text("\n".join([header, *rows]) + "\n")
    for row in rows:
        Path(row.partition(",")[0]).touch()
    return name


def test_a_manifest_is_collected_by_language_with_its_own_speakers_in_each_set(tmp_path: Path) -> None:
    rows = [f"{lang}{n}.wav,ja,{lang},s{n % 10}" for lang in ("de", "no") for n in range(100)]
    tallies = collect(manifest("m.csv", *rows), "data")
    assert [(t.split, t.language, t.utterances, t.speakers) for t in tallies] == [
        (split, lang, utterances, speakers)
        for lang in ("de", "no")
        for split, utterances, speakers in (("train", 80, 8), ("dev", 10, 1), ("test", 10, 1))
    ]
    assert read_table("data/test_no/wav.scp").keys() == {u for u in read_table("data/test_no/text")}
    assert all(wav.startswith(f"{tmp_path}/no") for wav in read_table("data/test_no/wav.scp").values())
    utts = [read_table(f"data/{name}/text").keys() for name in ("train", "dev", "test_de", "test_no")]
    assert len(set().union(*utts)) == 200 == sum(map(len, utts))
    before = Path("data/test_de/text").read_bytes()
    collect("m.csv", "data")
    assert Path("data/test_de/text").read_bytes() == before


def test_the_column_split_decides_where_there_is_one() -> None:
    header = "path,text,language,split"
    rows = [f"{name}{n}.wav,ja,de,{name}" for name in ("train", "validation", "test") for n in range(3)]
    collect(manifest("m.csv", *rows, header=header), "data")
    assert read_table("data/dev/text").keys() == {f"de_validation{n}" for n in range(3)}
    Path("corpus.yaml").write_text("languages: {de: {train: m.csv, dev: m.csv, test: m.csv}}")
    collect("corpus.yaml", "again")
    assert Path("again/dev/wav.scp").read_bytes() == Path("data/dev/wav.scp").read_bytes()
    with pytest.raises(ValueError, match="m.csv: expected rows of test in 'de', got none, and the languages de;"):
        collect(manifest("m.csv", *rows[:6], header=header), "data")


def test_the_same_rows_are_not_in_train_and_test() -> None:
    manifest("m.csv", "a.wav,ja,de,s", "b.wav,ja,de,t")
    Path("corpus.yaml").write_text("languages: {de: {train: m.csv, dev: m.csv, test: m.csv}}")
    with pytest.raises(
        ValueError, match="train and dev of 'de' have 2 .*: m.csv:2: 'a' .* is m.csv:2: 'a' .*; give it a column"
    ):
        collect("corpus.yaml", "data")


def test_rows_without_audio_or_text_are_dropped_with_the_reason() -> None:
    path = manifest("m.csv", *(f"{n}.wav,{'' if n == 1 else 'ja'},de,s{n}" for n in range(9)))
    Path("2.wav").unlink()
    assert collect(path, "data")[0].dropped == {"de_1": "empty transcript", "de_2": "audio not found: 2.wav"}


def test_kinds_of_data_are_mixed_and_what_two_sets_share_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    corpus("de")
    manifest("m.csv", "r.wav,eins,,1", "q.wav,zwei,,2", header="path,text,start,end")
    for content in ("{train: m.csv, dev: in/dev_de, test: in/dev_de}", "{train: in/dev_de, dev: m.csv, test: m.csv}"):
        Path("corpus.yaml").write_text(f"languages: {{de: {content}}}")
        collect("corpus.yaml", "data")
        assert "warning: de: dev and test share 2 utterances" in capsys.readouterr().err
    assert read_table("data/train/text") == {"de_j": "eins", "de_k": "zwei"}
    assert read_table("data/dev/segments") == {
        "de_q-0000000-0002000": "de_q 0.0 2.0",
        "de_r-0000000-0001000": "de_r 0.0 1.0",
    }


def test_audio_in_datasets_is_written_below_the_folder_of_the_data() -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"audio": [{"path": f"{n}.flac", "bytes": b"audio %d" % n} for n in range(5)], "text": ["ja"] * 5}
    datasets.Dataset.from_dict(columns).save_to_disk("saved")
    Path("corpus.yaml").write_text("languages: {de: {train: saved, dev: 0.2, test: 0.2}}")
    assert [tally.utterances for tally in collect("corpus.yaml", "data")] == [3, 1, 1]
    wav = read_table("data/train/wav.scp")
    assert all(Path(path).read_bytes().startswith(b"audio ") for path in wav.values())
    assert {Path(path).parent for path in wav.values()} == {Path("data/extracted/de_train").absolute()}


@pytest.mark.parametrize("other", ["dev", "test"])
def test_an_utterance_of_the_training_set_is_in_no_other_set(other: str) -> None:
    path = corpus("de", "no")
    write_table(f"in/{other}_de/wav.scp", {"n": "/n.wav", "b": "/elsewhere.wav"})
    write_table(f"in/{other}_de/text", {"n": "drei", "b": "zwei"})
    message = (
        f"train and {other} of 'de' have 1 utterances in common: in/train_de/text:2: 'b' .* is "
        f"in/{other}_de/text:1: 'b' .*; remove them from one, or give different utterances different ids"
    )
    with pytest.raises(ValueError, match=message):
        collect(path, "data")
    assert not Path("data").exists()
    for table, audio in (("m.csv", "x.wav"), ("n.csv", "y.wav")):
        manifest(table, f"{audio},eins,de", header="path,text,language")
        Path(audio).write_bytes(b"the same audio")
    Path("corpus.yaml").write_text(
        yaml.safe_dump({"languages": {"de": {name: "in/dev_no" for name in SETS} | {"train": "m.csv", other: "n.csv"}}})
    )
    with pytest.raises(ValueError, match="m.csv:2: 'x' .* is n.csv:2: 'y' "):
        collect("corpus.yaml", "data")
    Path("y.wav").write_bytes(b"other audio of eins")
    collect("corpus.yaml", "data")


def test_texts_that_do_not_look_like_the_language_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    collect(corpus("de", "no", text={"a": "GUTEN TAG", "b": "добрый день [unk]"}), "data")
    err = capsys.readouterr().err
    assert "warning: de: train: 1 of 2 texts are in capitals, " in err and "(de_a: GUTEN TAG)" in err
    assert "warning: no: train: 1 of 2 texts are not in the script of 'no' (Latin) (no_b: добрый день [unk])" in err
    assert "warning: de: train: 1 of 2 texts are with tags, " in err and ": dev: " not in err

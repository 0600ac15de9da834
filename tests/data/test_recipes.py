"""Corpora from a stand-in of an ESPnet checkout, whose recipes leave what the real ones leave."""

from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import yaml

from espnet_lole.data import corpora
from espnet_lole.data.corpora import collect, load_corpus
from espnet_lole.data.formatting import format_dir
from espnet_lole.data.kaldi import read_table, write_table
from espnet_lole.data.recipes import LIMIT, Recipe

NAMES = {"de": "german", "en": "english", "ko": "korean", "zh": "chinese"}
SCRIPTS = {
    # paths relative to the recipe; sets named after the corpus's own code; a script that fails without its option
    "commonvoice": """
        [ "$1" = --lang ] && lang=${2//-/_}
        for part in train dev test; do
            mkdir -p "data/${part}_${lang}" && cp data.in/* "data/${part}_${lang}"
        done
        echo run >>runs
    """,
    "librispeech": "for part in train_clean dev_clean test_clean; do mkdir -p data/$part && cp data.in/* data/$part; done",
    "ksponspeech": "for part in train dev eval; do mkdir -p data/$part && cp data.in/* data/$part; done",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes recipes with their data of two utterances; the current directory is another."""
    monkeypatch.setattr(corpora, "whisper_languages", lambda: NAMES)
    monkeypatch.setenv("ESPNET_ROOT", str(tmp_path / "espnet"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, script in SCRIPTS.items():
        folder = tmp_path / "espnet" / "egs2" / name / "asr1"
        for part in ("local", "downloads", "data.in"):
            (folder / part).mkdir(parents=True)
        (folder / "local" / "data.sh").write_text(f"set -eu\n{script}\n")
        for utt, hz in (("a", 440), ("b", 880)):
            soundfile.write(folder / "downloads" / f"{utt}.wav", 0.3 * np.sin(2 * np.pi * hz * np.arange(8000) / 8000), 8000)
    egs2 = tmp_path / "espnet" / "egs2"
    write_table(egs2 / "commonvoice/asr1/data.in/wav.scp", {"a": "downloads/a.wav", "b": "cat downloads/b.wav |"})
    write_table(egs2 / "commonvoice/asr1/data.in/text", {"a": "Eins", "b": "Zwei"})
    with kaldiio.WriteHelper(f"ark,scp:{egs2}/librispeech/asr1/downloads/r.ark,{egs2}/librispeech/asr1/downloads/r.scp") as ark:
        ark("r", (8000, np.arange(8000, dtype=np.int16)))
    offset = read_table(egs2 / "librispeech/asr1/downloads/r.scp")["r"].rpartition(":")[2]
    write_table(egs2 / "librispeech/asr1/data.in/wav.scp", {"r": f"downloads/r.ark:{offset}"})
    write_table(egs2 / "librispeech/asr1/data.in/segments", {"a": "r 0.0 0.4", "b": "r 0.4 1.0"})
    write_table(egs2 / "librispeech/asr1/data.in/text", {"a": "ONE", "b": "TWO"})
    write_table(egs2 / "ksponspeech/asr1/data.in/wav.scp", {"a": "downloads/a.wav", "b": "downloads/b.wav"})
    write_table(egs2 / "ksponspeech/asr1/data.in/text", {"a": "n/ 하나 b/", "b": "b/ "})
    return egs2


def corpus(**languages: dict) -> str:
    """Writes corpus.yaml."""
    Path("corpus.yaml").write_text(yaml.safe_dump({"languages": languages}))
    return "corpus.yaml"


def entry(recipe: str, sets: str, **more: object) -> dict:
    """A language's entry; sets are those of train, dev and test."""
    train, dev, test = sets.split()
    return {"recipe": recipe, "train": train, "dev": dev, "test": test.replace("+", " "), **more}


def test_recipes_of_several_conventions_become_formatted_audio(checkout: Path) -> None:
    path = corpus(
        zh=entry("commonvoice --lang zh-CN", "train_zh_CN dev_zh_CN test_zh_CN"),
        en=entry("librispeech", "train_clean dev_clean test_clean", lower=True),
        ko=entry("ksponspeech/asr1", "train dev eval", remove="[a-z]/"),
    )
    tallies = collect(path, "data")
    assert read_table("data/train/text") == {"zh_a": "Eins", "zh_b": "Zwei", "en_a": "one", "en_b": "two", "ko_a": "하나"}
    assert {(t.language, t.utterances) for t in tallies} == {("zh", 2), ("en", 2), ("ko", 1)}
    assert read_table("data/train/skipped") == {"ko_b": "empty transcript"}
    format_dir("data/train", "dump")
    seconds = {utt: int(samples) / 16000 for utt, samples in read_table("dump/utt2num_samples").items()}
    assert seconds == pytest.approx({"zh_a": 1.0, "zh_b": 1.0, "en_a": 0.4, "en_b": 0.6, "ko_a": 1.0}, abs=1e-3)
    assert not Path("dump/skipped").read_text()
    heard, _ = soundfile.read(read_table("dump/wav.scp")["zh_b"])
    assert np.argmax(np.abs(np.fft.rfft(heard))) == 880  # the pipe read the recipe's file


def test_data_sh_runs_once_and_only_for_the_wanted_languages(checkout: Path) -> None:
    path = corpus(
        de=entry("commonvoice --lang de", "train_de dev_de test_de"), en=entry("librispeech", "train_clean dev_clean test_clean")
    )
    for _ in range(2):
        collect(path, "data", ["de"])
    assert (checkout / "commonvoice/asr1/runs").read_text() == "run\n"
    assert not (checkout / "librispeech/asr1/data").exists()


def test_several_test_sets_are_joined_and_hours_are_capped(checkout: Path) -> None:
    write_table(checkout / "librispeech/asr1/data.in/segments", {f"u{i}": f"r {i / 10} {(i + 1) / 10}" for i in range(10)})
    write_table(checkout / "librispeech/asr1/data.in/text", {f"u{i}": "ONE" for i in range(10)})
    path = corpus(en=entry("librispeech", "train_clean dev_clean test_clean", max_hours=0.35 / 3600))
    tallies = collect(path, "data")
    kept, skipped = read_table("data/train/text"), read_table("data/train/skipped")
    assert len(kept) == 3 and set(skipped.values()) == {LIMIT} and len(skipped) == 7
    assert tallies[0].utterances == 3 and len(read_table("data/test_en/text")) == 10  # test sets are never shortened
    collect(path, "again")
    assert read_table("again/train/text") == kept
    path = corpus(de=entry("commonvoice --lang de", "train_de dev_de test_de", max_hours=1.5 / 3600))
    assert collect(path, "by_header")[0].utterances == 1  # of a file and a pipe, a second each


def test_joined_test_sets_must_not_share_ids(checkout: Path) -> None:
    write_table(checkout / "ksponspeech/asr1/data.in/text", {"a": "하나", "b": "둘"})
    path = corpus(ko=entry("ksponspeech", "train dev eval+eval"))
    collect(path, "data")
    assert len(read_table("data/test_ko/text")) == 2  # the same utterance twice is the same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_hours": "many"}, "languages: de: expected a number in max_hours, a regular expression in remove, got: could not"),
        ({"max_hours": 0}, "expected lower of true or false and max_hours above 0, got false and 0"),
        ({"lower": "yes"}, "expected lower of true or false"),
        ({"remove": "["}, "a regular expression in remove, got: unterminated"),
        ({"hours": 3}, "expected only the keys recipe, train, dev, test, max_hours, lower, remove, got hours"),
        ({"dev": ""}, "expected one directory for each of train, dev, test, got dev: nothing"),
    ],
)
def test_mistakes_in_the_file_are_told(checkout: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_corpus(corpus(de=entry("commonvoice --lang de", "train_de dev_de test_de") | change))


def test_mistakes_around_the_checkout_are_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus(de=entry("commonvoice", "train_de dev_de test_de"))
    with pytest.raises(OSError, match="got exit status 1 and the sets: none; read its messages above, set the corpus's place in"):
        collect(path, "data")
    path = corpus(de=entry("commonvoice --lang fr", "train_de dev_de test_de"))
    with pytest.raises(OSError, match="got exit status 0 and the sets: dev_fr, test_fr, train_fr"):
        collect(path, "data")
    with pytest.raises(FileNotFoundError, match="expected .*egs2/nothing/asr1/local/data.sh, found none; correct ESPNET_ROOT"):
        collect(corpus(de=entry("nothing", "train dev test")), "data")
    monkeypatch.delenv("ESPNET_ROOT")
    with pytest.raises(FileNotFoundError, match="expected ESPNET_ROOT, the ESPnet checkout that holds egs2/nothing/asr1"):
        collect(path, "data")


def test_commands_run_in_the_recipes_folder() -> None:
    assert Recipe(Path("/e f/asr1")).command("sox a.wav -t wav - |") == "cd '/e f/asr1' && { sox a.wav -t wav -; } |"

"""Corpora from a stand-in of an ESPnet checkout, whose recipes leave what the real ones leave."""

from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import yaml

from espnet_lole import languages
from espnet_lole.data.collecting import collect
from espnet_lole.data.corpora import load_corpus
from espnet_lole.data.formatting import format_dir
from espnet_lole.data.kaldi import read_table, write_table
from espnet_lole.data.recipes import BEYOND_LIMIT, Recipe, run_in_folder

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
    "librispeech": "for part in {train,dev,test}_clean; do mkdir -p data/$part && cp data.in/* data/$part; done",
    "ksponspeech": "for part in train dev eval; do mkdir -p data/$part && cp data.in/* data/$part; done",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make recipes with their data of two utterances; the current directory is another."""
    monkeypatch.setattr(languages, "whisper_languages", lambda: NAMES)
    monkeypatch.setenv("ESPNET_ROOT", str(tmp_path / "espnet"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, script in SCRIPTS.items():
        folder = tmp_path / "espnet" / "egs2" / name / "asr1"
        for part in ("local", "downloads", "data.in"):
            (folder / part).mkdir(parents=True)
        (folder / "local" / "data.sh").write_text(f"set -eu\n{script}\n")
        for utt, hz in (("a", 440), ("b", 880)):
            sine = 0.3 * np.sin(2 * np.pi * hz * np.arange(8000) / 8000)
            soundfile.write(folder / "downloads" / f"{utt}.wav", sine, 8000)
    egs2 = tmp_path / "espnet" / "egs2"
    write_table(egs2 / "commonvoice/asr1/data.in/wav.scp", {"a": "downloads/a.wav", "b": "cat downloads/b.wav |"})
    write_table(egs2 / "commonvoice/asr1/data.in/text", {"a": "Eins", "b": "Zwei"})
    audio = {"r": (8000, np.arange(8000, dtype=np.int16))}
    downloads = egs2 / "librispeech/asr1/downloads"
    kaldiio.save_ark(str(downloads / "r.ark"), audio, scp=str(downloads / "r.scp"))
    offset = read_table(downloads / "r.scp")["r"].rpartition(":")[2]
    write_table(egs2 / "librispeech/asr1/data.in/wav.scp", {"r": f"downloads/r.ark:{offset}"})
    write_table(egs2 / "librispeech/asr1/data.in/segments", {"a": "r 0.0 0.4", "b": "r 0.4 1.0"})
    write_table(egs2 / "librispeech/asr1/data.in/text", {"a": "ONE", "b": "TWO"})
    write_table(egs2 / "ksponspeech/asr1/data.in/wav.scp", {"a": "downloads/a.wav", "b": "downloads/b.wav"})
    write_table(egs2 / "ksponspeech/asr1/data.in/text", {"a": "n/ 하나 b/", "b": "b/ "})
    return egs2


def corpus(**languages: dict) -> str:
    """Write corpus.yaml."""
    Path("corpus.yaml").write_text(yaml.safe_dump({"languages": languages}))
    return "corpus.yaml"


def entry(recipe: str, sets: str, **more: object) -> dict:
    """Return the entry of a language, whose sets are those of train, dev and test."""
    train, dev, test = sets.split()
    return {"recipe": recipe, "train": train, "dev": dev, "test": test.replace("+", " "), **more}


def test_capitals_become_lower_case_by_the_rules_of_their_language(checkout: Path) -> None:
    texts = {"tr": ("KIRMIZI İP", "kırmızı ip"), "az": ("QIZIL", "qızıl"), "el": ("ΟΔΟΣ", "οδος"), "en": ("III", "iii")}
    recipe = Recipe("any/asr1", lower=True)
    assert {lang: recipe.clean(text, lang) for lang, (text, _) in texts.items()} == {
        lang: expected for lang, (_, expected) in texts.items()
    }


def test_recipes_of_several_conventions_become_formatted_audio(checkout: Path) -> None:
    path = corpus(
        zh=entry("commonvoice --lang zh-CN", "train_zh_CN dev_zh_CN test_zh_CN"),
        en=entry("librispeech", "train_clean dev_clean test_clean", lower=True),
        ko=entry("ksponspeech/asr1", "train dev eval", remove="[a-z]/"),
    )
    tallies = collect(path, "data")
    text = {"zh_a": "Eins", "zh_b": "Zwei", "en_a": "one", "en_b": "two", "ko_a": "하나"}
    assert read_table("data/train/text") == text
    assert {(t.language, t.utterances) for t in tallies} == {("zh", 2), ("en", 2), ("ko", 1)}
    assert read_table("data/train/skipped") == {"ko_b": "empty transcript"}
    format_dir("data/train", "dump")
    seconds = {utt: int(samples) / 16000 for utt, samples in read_table("dump/utt2num_samples").items()}
    assert seconds == pytest.approx({"zh_a": 1.0, "zh_b": 1.0, "en_a": 0.4, "en_b": 0.6, "ko_a": 1.0}, abs=1e-3)
    assert not Path("dump/skipped").read_text()
    speech, _ = soundfile.read(read_table("dump/wav.scp")["zh_b"])
    assert np.argmax(np.abs(np.fft.rfft(speech))) == 880  # the pipe read the recipe's file


def test_data_sh_runs_once_and_only_for_the_selected_languages(checkout: Path) -> None:
    librispeech = entry("librispeech", "train_clean dev_clean test_clean")
    path = corpus(de=entry("commonvoice --lang de", "train_de dev_de test_de"), en=librispeech)
    for _ in range(2):
        collect(path, "data", ["de"])
    assert (checkout / "commonvoice/asr1/runs").read_text() == "run\n"
    assert not (checkout / "librispeech/asr1/data").exists()


def test_max_hours_limits_the_training_audio_alike_in_every_run(checkout: Path) -> None:
    data = checkout / "librispeech/asr1/data.in"
    write_table(data / "segments", {f"u{i}": f"r {i / 10} {(i + 1) / 10}" for i in range(10)})
    write_table(data / "text", {f"u{i}": "ONE" for i in range(10)})
    path = corpus(en=entry("librispeech", "train_clean dev_clean test_clean", max_hours=0.35 / 3600))
    tallies = collect(path, "data")
    selected, skipped = read_table("data/train/text"), read_table("data/train/skipped")
    assert len(selected) == 3 and set(skipped.values()) == {BEYOND_LIMIT} and len(skipped) == 7
    assert tallies[0].utterances == 3 and len(read_table("data/test_en/text")) == 10  # test sets are never shortened
    collect(path, "again")
    assert read_table("again/train/text") == selected
    path = corpus(de=entry("commonvoice --lang de", "train_de dev_de test_de", max_hours=1.5 / 3600))
    assert collect(path, "by_header")[0].utterances == 1  # of a file and a pipe, a second each


def test_a_set_that_is_named_twice_is_collected_once(checkout: Path) -> None:
    write_table(checkout / "ksponspeech/asr1/data.in/text", {"a": "하나", "b": "둘"})
    path = corpus(ko=entry("ksponspeech", "train dev eval+eval"))
    collect(path, "data")
    assert len(read_table("data/test_ko/text")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_hours": "many"}, "languages: de: .* a number in max_hours .*, got: could not convert string"),
        ({"max_hours": 0}, "expected lower to be true or false and max_hours above 0, got false and 0"),
        ({"lower": "yes"}, "expected lower to be true or false"),
        ({"recipe": "x 'y"}, "expected a name and options in recipe, .*, got: No closing quotation"),
        ({"remove": "["}, "a regular expression in remove, got: unterminated"),
        ({"hours": 3}, "expected one value for each of recipe, .* remove: optional.*, got hours: 3"),
        ({"dev": ""}, "got dev: nothing"),
    ],
)
def test_mistakes_in_an_entry_are_named(checkout: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_corpus(corpus(de=entry("commonvoice --lang de", "train_de dev_de test_de") | change))


def test_mistakes_around_the_checkout_are_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus(de=entry("commonvoice", "train_de dev_de test_de"))
    with pytest.raises(OSError, match="got exit status 1 and the sets: none; read its messages above, set the"):
        collect(path, "data")
    path = corpus(de=entry("commonvoice --lang fr", "train_de dev_de test_de"))
    with pytest.raises(OSError, match="got exit status 0 and the sets: dev_fr, test_fr, train_fr"):
        collect(path, "data")
    with pytest.raises(FileNotFoundError, match="egs2/nothing/asr1/local/data.sh does not exist; correct ESPNET_ROOT"):
        collect(corpus(de=entry("nothing", "train dev test")), "data")
    monkeypatch.delenv("ESPNET_ROOT")
    with pytest.raises(FileNotFoundError, match="expected ESPNET_ROOT to be the path of .* with egs2/nothing/asr1"):
        collect(path, "data")


def test_commands_of_a_recipe_run_in_its_folder() -> None:
    assert run_in_folder("sox a.wav -t wav - |", Path("/e f/asr1")) == "cd '/e f/asr1' && { sox a.wav -t wav -; } |"

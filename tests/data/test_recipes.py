"""Corpora from a miniature ESPnet tree, whose recipes do what the real ones do."""

import os
import re
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import yaml

from espnet_lole import languages
from espnet_lole.data import recipe_needs
from espnet_lole.data.collecting import collect
from espnet_lole.data.corpora import load_corpus
from espnet_lole.data.formatting import format_dir
from espnet_lole.data.kaldi import read_table, write_table
from espnet_lole.data.recipes import BEYOND_LIMIT, Recipe, run_in_folder

NAMES = {"de": "german", "en": "english", "ko": "korean", "zh": "chinese"}
START = "set -eu\n. ./db.sh\n. ./path.sh\n"
SCRIPTS = {
    # capitals; dev and test are parts of the table of train, and removed from it at the end; commands for the audio
    "commonvoice": """
        lang=${2//-/_}
        [ "${3:-}" = --stage ] || wget -q "https://example.com/$2.tar.gz"
        for part in validated dev test; do
            folder=data/${part}_${lang}
            mkdir -p "${folder}"
            tail -n +2 "${CV}/$2/${part}.tsv" | while IFS=$'\\t' read -r clip text; do
                echo "spk-${clip%.wav} cat ${CV}/$2/clips/${clip} |" >>"${folder}/wav.scp"
                echo "spk-${clip%.wav} $(tr "[:lower:]" "[:upper:]" <<<"${text}")" >>"${folder}/text"
            done
        done
        cp -r "data/validated_${lang}" "data/train_${lang}"
        locale -a | grep -q C.UTF-8 || { echo "text contains 9 lines with non-printable characters"; exit 1; }
        cat data/{dev,test}_${lang}/wav.scp | cut -d" " -f1 >data/held_out
        grep -v -f data/held_out "data/validated_${lang}/wav.scp" >"data/train_${lang}/wav.scp"
        grep -v -f data/held_out "data/validated_${lang}/text" >"data/train_${lang}/text"
        """,
    # relative paths to arks, with segments; it asks for a language model's program, which it does not use
    "librispeech": """
        [ -d "${MAIN_ROOT}/tools/kenlm/build/bin" ] || { echo "kenlm is not installed" >&2; exit 1; }
        command -v no-such-lm >/dev/null || exit 2
        mkdir -p data && cp -r data.in/* data
        echo run >>conf/runs
        """,
    # a folder of all languages, which may not be there; a list of checksums, which is downloaded if it is missing
    "mls": """
        [ -f "${MLS}/md5sum.txt" ] || exit 3
        mkdir -p data/mls_$2_{train,dev,test} && mkdir data/mls_all
        for part in train dev test; do
            echo "$2_${part} ${MLS}/a.wav" >data/mls_$2_${part}/wav.scp
            sed "s#a.wav#${part}.wav#" -i data/mls_$2_${part}/wav.scp
            echo "$2_${part} ${part} [unk] n/ <noise>" >data/mls_$2_${part}/text
        done
        """,
    "silent": "mkdir data && exit 4",
    "modules": "python3 -c 'import no_such_module'",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a checkout with recipes and their corpora; the current directory is another."""
    monkeypatch.setattr(languages, "whisper_languages", lambda: NAMES)
    monkeypatch.setenv("ESPNET_ROOT", str(tmp_path / "espnet"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    egs2, corpora = tmp_path / "espnet" / "egs2", tmp_path / "corpora"
    (tmp_path / "espnet" / "tools").mkdir(parents=True)
    for name, script in SCRIPTS.items():
        (egs2 / name / "asr1" / "local").mkdir(parents=True)
        (egs2 / name / "asr1" / "conf").mkdir()
        (egs2 / name / "asr1" / "local" / "data.sh").write_text(START + script)
        (egs2 / name / "asr1" / "path.sh").write_text("MAIN_ROOT=$PWD/../../..\n")
        (egs2 / name / "asr1" / "db.sh").write_text(f"CV={corpora}/cv\nMLS={corpora}/mls\nLM=\nSETS=downloads\n")
    _make_common_voice(corpora / "cv" / "de")
    _make_librispeech(egs2 / "librispeech" / "asr1")
    (corpora / "mls").mkdir()
    for number, name in enumerate(("train", "dev", "test")):
        soundfile.write(corpora / "mls" / f"{name}.wav", _sine(200 * (number + 1), 4000), 8000)
    return egs2


def _sine(hz: float, samples: int) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(samples) / 8000)


def _make_common_voice(folder: Path) -> None:
    (folder / "clips").mkdir(parents=True)
    texts = {"a": "Straße, links!", "b": "Grüße aus Wien.", "c": "Ein Haus.", "d": "Zwei?"}
    for number, name in enumerate(texts):
        soundfile.write(folder / "clips" / f"{name}.wav", _sine(440 * (number + 1), 8000), 8000)
    for part, names in (("validated", "abcd"), ("dev", "c"), ("test", "d")):
        rows = "".join(f"{name}.wav\t{texts[name]}\n" for name in names)
        (folder / f"{part}.tsv").write_text(f"path\tsentence\n{rows}")


def _make_librispeech(folder: Path) -> None:
    (folder / "downloads").mkdir()
    for part in ("train", "dev", "test"):
        recording, utts = f"r{part}", (f"{part}a", f"{part}b")
        scp = folder / "downloads" / f"{part}.scp"
        ark = folder / "downloads" / f"{part}.ark"
        kaldiio.save_ark(str(ark), {recording: (8000, np.arange(8000, dtype=np.int16))}, scp=str(scp))
        sets = folder / "data.in" / f"{part}_clean"
        sets.mkdir(parents=True)
        offset = read_table(scp)[recording].rpartition(":")[2]
        write_table(sets / "wav.scp", {recording: f"downloads/{part}.ark:{offset}"})
        write_table(sets / "segments", {utts[0]: f"{recording} 0.0 0.4", utts[1]: f"{recording} 0.4 1.0"})
        write_table(sets / "text", {utts[0]: "ONE", utts[1]: "TWO"})


def corpus(**languages: dict) -> str:
    """Write corpus.yaml."""
    Path("corpus.yaml").write_text(yaml.safe_dump({"languages": languages}))
    return "corpus.yaml"


def entry(recipe: str, sets: str, **more: object) -> dict:
    """Return the entry of a language, whose sets are those of train, dev and test."""
    train, dev, test = sets.split()
    return {"recipe": recipe, "train": train, "dev": dev, "test": test.replace("+", " "), **more}


def german(**more: object) -> dict:
    return entry("commonvoice --lang de", "train_de dev_de test_de", **{"offline": "--stage 1"} | more)


def english(**more: object) -> dict:
    sets = "train_clean dev_clean test_clean"
    return entry("librispeech", sets, **{"assume": "no-such-lm tools/kenlm/build/bin/"} | more)


def listing(folder: Path) -> list[tuple[Path, int]]:
    """List what is in a folder, with the dates of files."""
    return sorted((path, path.lstat().st_mtime_ns if path.is_file() else 0) for path in folder.rglob("*"))


def test_capitals_become_lower_case_by_the_rules_of_their_language() -> None:
    texts = {"tr": ("KIRMIZI İP", "kırmızı ip"), "az": ("QIZIL", "qızıl"), "el": ("ΟΔΟΣ", "οδος"), "en": ("III", "iii")}
    recipe = Recipe("any/asr1", lower=True)
    assert {lang: recipe.clean(text, lang) for lang, (text, _) in texts.items()} == {
        lang: expected for lang, (_, expected) in texts.items()
    }


def test_recipes_of_several_conventions_become_formatted_audio(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = corpus(
        de=german(needs="bash $CV/de/validated.tsv"),
        en=english(lower=True),
        ko=entry("mls --lang ko", "mls_ko_train mls_ko_dev mls_ko_test", assume="$MLS/md5sum.txt", remove="[a-z]/"),
        zh=entry("mls --lang zh", "mls_zh_train mls_zh_dev mls_zh_test", assume="$MLS/md5sum.txt"),
    )
    before = listing(tree.parent), listing(tmp_path / "corpora")
    tallies = collect(path, "data")
    assert {(t.language, t.split): t.utterances for t in tallies}[("de", "train")] == 2
    text = {"de_spk-a": "Straße, links!", "de_spk-b": "Grüße aus Wien.", "en_traina": "one", "en_trainb": "two"}
    assert read_table("data/train/text") == text | {"ko_train": "train", "zh_train": "train n/"}
    assert read_table("data/test_de/text") == {"de_spk-d": "Zwei?"}
    assert (listing(tree.parent), listing(tmp_path / "corpora")) == before  # each ran in a folder of its own
    err = capsys.readouterr().err
    assert f"de: train_de: the texts are those of {tmp_path}/corpora/cv/de/validated.tsv" in err
    assert "ko: mls_ko_train: tags such as [unk] were removed from 1 of 1 texts" in err
    assert "en: test_clean: the texts are made lower case" in err and "in capitals" not in err
    format_dir("data/train", "dump")
    seconds = {utt: int(samples) / 16000 for utt, samples in read_table("dump/utt2num_samples").items()}
    expected = {"de_spk-a": 1.0, "de_spk-b": 1.0, "en_traina": 0.4, "en_trainb": 0.6, "ko_train": 0.5, "zh_train": 0.5}
    assert seconds == pytest.approx(expected, abs=1e-3) and not Path("dump/skipped").read_text()
    speech, _ = soundfile.read(read_table("dump/wav.scp")["de_spk-b"])
    assert np.argmax(np.abs(np.fft.rfft(speech))) == 880  # the pipe read the corpus's file


def test_data_sh_runs_once_and_only_for_the_selected_languages(tree: Path) -> None:
    path = corpus(de=german(), en=english())
    for _ in range(2):
        collect(path, "data", ["en"])
    assert [file.read_text() for file in Path("data/recipes").glob("*/egs2/*/asr1/conf/runs")] == ["run\n"]
    assert not list(Path("data/recipes").glob("commonvoice*"))


def test_what_a_failed_recipe_left_is_moved_aside_and_never_used(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "bin" / "locale"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho en_US.utf8\n")
    program.chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{program.parent}:{path}")
    for number in (1, 2):
        message = (
            r"commonvoice/asr1 --lang de: local/data.sh failed with exit status 1; what it left is in (.*/data/recipes"
            rf"/commonvoice_asr1_--lang_de.failed.{number}) and .* ends with:\n  text contains 9 lines"
        )
        with pytest.raises(OSError, match=message) as error:
            collect(corpus(de=german()), "data")
        left = Path(re.search(message, str(error.value))[1])
        assert (
            len(read_table(left / "egs2/commonvoice/asr1/data/train_de/text")) == 4
        )  # all of them, of dev and test too
    Path("data/recipes/commonvoice_asr1_--lang_de/egs2").mkdir(parents=True)  # as a run leaves it that is killed
    monkeypatch.setenv("PATH", path)
    collect("corpus.yaml", "data")
    assert "commonvoice_asr1_--lang_de has no complete data: moved to" in capsys.readouterr().err
    ids = [read_table(f"data/{name}/text").keys() for name in ("train", "dev", "test_de")]
    assert list(map(len, ids)) == [2, 1, 1] and len(set().union(*ids)) == 4
    Path("data/recipes/commonvoice_asr1_--lang_de/egs2/commonvoice/asr1/data").rename("old")
    assert collect("corpus.yaml", "data")[0].utterances == 2  # the data were moved away: the recipe runs again
    with pytest.raises(OSError, match="exit status 4; .* ends with: without a message"):
        collect(corpus(de=entry("silent", "train dev test")), "data")


def test_a_spelling_of_the_locale_that_kaldi_does_not_know_is_translated(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "locale"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf 'C\\nC.utf8\\nPOSIX\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert collect(corpus(de=german()), "data")[0].utterances == 2


def test_sets_of_the_checkout_are_taken_if_all_are_there(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tree / "commonvoice" / "asr1" / "data"
    for name in ("train_de", "dev_de"):
        data.joinpath(name).mkdir(parents=True)
        write_table(data / name / "wav.scp", {f"own-{name}": f"/{name}.wav"})
        write_table(data / name / "text", {f"own-{name}": "Von früher"})
    collect(corpus(de=german()), "data")
    assert read_table("data/dev/text") == {"de_spk-c": "Ein Haus."}  # a set lacks: the recipe ran
    (data / "dev_de").rename(data / "test_de")
    collect(corpus(de=german() | {"dev": "test_de"}), "again")
    assert read_table("again/train/text") == {"de_own-train_de": "Von früher"}
    assert not Path("again/recipes").exists()


def test_sets_of_a_recipe_that_was_stopped_before_are_refused_with_their_places(tree: Path) -> None:
    data = tree / "commonvoice" / "asr1" / "data"
    for name, utts in (("train_de", "abc"), ("dev_de", "b"), ("test_de", "c")):
        data.joinpath(name).mkdir(parents=True)
        write_table(data / name / "wav.scp", {f"spk-{utt}": f"cat {utt}.wav |" for utt in utts})
        write_table(data / name / "text", {f"spk-{utt}": "EIN TEXT" for utt in utts})
    message = (
        f"train and dev of 'de' have 1 utterances in common: {data}/train_de/text:2: 'spk-b' .* is "
        f"{data}/dev_de/text:1: 'spk-b' .*; if local/data.sh was stopped, move {data} away"
    )
    with pytest.raises(ValueError, match=message):
        collect(corpus(de=german()), "data")


def test_all_that_is_missing_is_listed_before_any_recipe_starts(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "modules" / "asr1" / "local" / "data.sh").write_text('ls "${LM}" $SETS')
    monkeypatch.setattr(recipe_needs, "kaldi_locale", lambda: "C.UTF-8")
    path = corpus(
        de=german(needs="bash no-such-program $CV/en/validated.tsv"),
        en=english(),
        ko=entry("modules", "train dev test", needs="python:json python:no_such_module"),
        zh=entry("nothing", "train dev test"),
    )
    with pytest.raises(OSError) as error:
        collect(path, "data")
    first, *lines = str(error.value).splitlines()
    assert first == "no recipe of ESPnet was started, because something is missing:" and not Path("data").exists()
    modules = tree / "modules" / "asr1"
    assert lines == [
        "  de (commonvoice/asr1 --lang de): the program no-such-program is not installed: apt-get install "
        f"no-such-program, or conda install no-such-program; {tmp_path}/corpora/cv/en/validated.tsv does not exist: "
        f"unpack the corpus there, or correct CV in {tree}/commonvoice/asr1/db.sh",
        "  ko (modules/asr1): the recipe's Python cannot import no_such_module: install it there, as with pip install "
        f"no_such_module; LM in {modules}/db.sh is empty: set it to the folder of the corpus; SETS in {modules}/db.sh "
        "is 'downloads', so that the recipe would download the corpus: set it to the folder of the corpus, or allow "
        "the download with --local_data_opts '--download true'",
        f"  zh (nothing/asr1): {tree}/nothing/asr1/local/data.sh does not exist: correct ESPNET_ROOT or the recipe's "
        "name",
    ]
    monkeypatch.setattr(recipe_needs, "kaldi_locale", lambda: None)
    with pytest.raises(OSError, match=r"de \(.*\): there is neither a locale C.UTF-8 nor en_US.UTF-8: locale-gen"):
        collect(corpus(de=german()), "data")
    db = tree / "commonvoice" / "asr1" / "db.sh"
    db.write_text("CV=/nowhere/cv\nVERSION=dvd\n")
    with pytest.raises(OSError, match=f"CV in {db} is '/nowhere/cv', which is missing or empty: correct it"):
        collect(corpus(de=german()), "data")


def test_nothing_is_downloaded_unless_it_is_asked_for(tree: Path) -> None:
    script = 'echo "$* by ${https_proxy:-nothing}" >&2; exit 5'
    (tree / "commonvoice" / "asr1" / "local" / "data.sh").write_text(script)
    message = (
        "(?s)--stage 1 by http://no-download-was-asked-for.*it wanted to download, which --local_data_opts .* allows"
    )
    with pytest.raises(OSError, match=message):
        collect(corpus(de=german()), "data")
    (tree / "commonvoice" / "asr1" / "db.sh").write_text("CV=downloads\n")
    script += ' "${CV}"'
    for needs in ("", "$CV/de/validated.tsv"):
        with pytest.raises(OSError, match="ends with:\n  --lang de by nothing$"):
            collect(corpus(de=german(needs=needs) if needs else german()), "data", download=True)
    assert (tree / "commonvoice" / "asr1" / "downloads").is_dir()


def test_max_hours_limits_the_training_audio_alike_in_every_run(tree: Path) -> None:
    data = tree / "librispeech" / "asr1" / "data.in" / "train_clean"
    write_table(data / "segments", {f"u{i}": f"rtrain {i / 10} {(i + 1) / 10}" for i in range(10)})
    write_table(data / "text", {f"u{i}": "ONE" for i in range(10)})
    path = corpus(en=english(max_hours=0.35 / 3600))
    tallies = collect(path, "data")
    selected, skipped = read_table("data/train/text"), read_table("data/train/skipped")
    assert len(selected) == 3 and set(skipped.values()) == {BEYOND_LIMIT} and len(skipped) == 7
    assert tallies[0].utterances == 3 and len(read_table("data/test_en/text")) == 2  # test sets are never shortened
    collect(path, "again")
    assert read_table("again/train/text") == selected
    assert (
        collect(corpus(de=german(max_hours=1.5 / 3600)), "piped")[0].utterances == 1
    )  # of two commands, a second each


def test_a_set_that_is_named_twice_is_collected_once(tree: Path) -> None:
    collect(corpus(en=english() | {"test": "test_clean test_clean"}), "data")
    assert len(read_table("data/test_en/text")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_hours": "many"}, "languages: de: .* a number in max_hours .*, got: could not convert string"),
        ({"max_hours": 0}, "expected lower to be true or false and max_hours above 0, got false and 0"),
        ({"lower": "yes"}, "expected lower to be true or false"),
        ({"recipe": "x 'y"}, "expected a name and options in recipe, .*, got: No closing quotation"),
        ({"offline": "--stage '1"}, "expected a name and options in recipe, .*, got: No closing quotation"),
        ({"remove": "["}, "a regular expression in remove, got: unterminated"),
        ({"hours": 3}, "expected one value for each of recipe, .* remove: optional.*, got hours: 3"),
        ({"dev": ""}, "got dev: nothing"),
    ],
)
def test_mistakes_in_an_entry_are_named(tree: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_corpus(corpus(de=german() | change))


def test_a_wrong_set_and_a_missing_checkout_are_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus(en=english() | {"train": "train"})
    message = "librispeech/asr1: expected the sets train in .*/data, got: dev_clean, test_clean, train_clean; correct"
    for _ in range(2):
        with pytest.raises(OSError, match=message):
            collect(path, "data")
    assert len(list(Path("data/recipes").iterdir())) == 2  # it ran once: the lock, and its folder
    monkeypatch.delenv("ESPNET_ROOT")
    with pytest.raises(FileNotFoundError, match="expected ESPNET_ROOT to be the path of .* with egs2/commonvoice/asr1"):
        collect(corpus(de=german()), "data")


def test_commands_of_a_recipe_run_in_its_folder() -> None:
    assert run_in_folder("sox a.wav -t wav - |", Path("/e f/asr1")) == "cd '/e f/asr1' && { sox a.wav -t wav -; } |"

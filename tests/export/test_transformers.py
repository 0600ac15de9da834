"""A merged Whisper is the adapted one, here and in transformers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch
import transformers
import yaml
from conftest import tiny_whisper
from systems import make_spoken_student, speak
from transformers import pipeline

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main
from espnet_lole.evaluation.normalize import normalize
from espnet_lole.export.transformers import save_tokenizer, save_whisper_model, transformers_tokenizer
from espnet_lole.inference.load import find_system
from espnet_lole.inference.search import SearchConfig
from espnet_lole.whisper.checkpoint import load_whisper
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

NOISE = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)


def score(folder: Path) -> float:
    """Return the score of a German text, which differs between systems even if the text does not."""
    s2t = Speech2Text.from_pretrained(folder, device="cpu", vad_threshold=0)
    s2t.search = SearchConfig(maxlenratio=0.2)
    return s2t(NOISE, "de")[0][3].score


@pytest.mark.parametrize(("system", "lang"), [("experts", "de"), ("student", None)])
def test_a_merged_whisper_is_the_adapted_one(recipe, tmp_path, system, lang):
    command = ["export", str(recipe / "exp" / system), str(tmp_path / "merged"), "--format", "merged"]
    assert main([*command, *(["--lang", lang] if lang else [])]) == 0
    merged = find_system(tmp_path / "merged")
    assert merged.languages == ((lang,) if lang else ("de", "en", "fr", "zh")) and not merged.adapter_folders()
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["pad_to"] == "none"
    assert score(tmp_path / "merged") == pytest.approx(score(recipe / "exp" / system), abs=1e-4)
    assert abs(score(tmp_path / "merged") - score(recipe / "tiny")) > 1e-2


def test_the_padding_is_that_of_the_training_even_on_an_older_backbone(tmp_path):
    model = tiny_whisper()
    model.config.window = "short"  # the older name, which stays in the copy
    save_whisper_model(Whisper(model, "+1s"), tmp_path / "merged", ["de"])
    assert load_whisper(str(tmp_path / "merged")).pad_to == "+1s"


@pytest.mark.parametrize("size", [51865, 51866])
def test_the_tokenizer_of_transformers_has_whispers_tokens(size):
    tokenizer = WhisperTokenizer(size)
    converted = transformers_tokenizer(tokenizer)
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>", "<|30.00|>"]
    ids = [
        tokenizer.eot,
        tokenizer.sot,
        tokenizer.language("de"),
        tokenizer.transcribe,
        tokenizer.no_timestamps,
        size - 1,
    ]
    assert converted.convert_tokens_to_ids(special) == ids and len(converted) == size
    for text in ("siebenundachtzig Kilometer", "四米 九十二克", "it's 100% naïve", "привет, мир", "ค่า"):
        ids = tokenizer.encode(text, "zh")
        assert converted(text, add_special_tokens=False).input_ids == ids and converted.decode(ids) == text


def test_the_generation_configuration_is_the_backbones(recipe, tmp_path):
    """Whose file may say that it was derived from config.json, in which transformers 4 would derive it again."""
    shutil.copytree(recipe / "tiny", tmp_path / "tiny")
    heads, suppressed = [[0, 1], [1, 0]], [1, 2, 50258]
    given = {"alignment_heads": heads, "suppress_tokens": suppressed, "begin_suppress_tokens": [220, 50257]}
    given |= {"_from_model_config": True, "forced_decoder_ids": [[1, None]], "return_timestamps": False}
    (tmp_path / "tiny" / "generation_config.json").write_text(json.dumps(given))
    command = ["export", str(recipe / "exp" / "student"), str(tmp_path / "merged"), "--format", "merged"]
    assert main([*command, "--backbone", str(tmp_path / "tiny")]) == 0
    made = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert made["alignment_heads"] == heads and made["suppress_tokens"] == suppressed
    assert made["begin_suppress_tokens"] == [220, 50257] and sorted(made["lang_to_id"])[0] == "<|de|>"
    assert not made.get("_from_model_config") and "forced_decoder_ids" not in made
    shutil.rmtree(tmp_path / "merged")
    assert main(command) == 0  # a backbone that names no heads: those of openai-whisper's default
    made = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert made["alignment_heads"] == [[1, 0], [1, 1]]


def test_the_tokenizer_files_have_the_form_that_transformers_4_reads(tmp_path):
    save_tokenizer(WhisperTokenizer(51865), tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in config and "<|notimestamps|>" in config["additional_special_tokens"]
    assert config["added_tokens_decoder"]["50258"] == {"content": "<|startoftranscript|>", "special": True}
    assert json.loads((tmp_path / "vocab.json").read_text())["<|endoftext|>"] == 50257
    assert len((tmp_path / "merges.txt").read_text().splitlines()) > 50_000
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read("drei", add_special_tokens=False).input_ids == WhisperTokenizer(51865).encode("drei", "zh")
    assert len(read) == 51865 and max(read.all_special_ids) == 50363


@pytest.mark.slow
def test_transformers_4_runs_a_merged_student(tmp_path):
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    wanted = ["transformers==4.57.6", f"torch=={torch.__version__.partition('+')[0]}"]
    command = [uv, "run", "--no-project", *(part for name in wanted for part in ("--with", name)), "python", "-c"]
    try:
        subprocess.run([*command, "import transformers"], check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"transformers 4.57 cannot be installed: {error}")
    student = make_spoken_student(tmp_path / "student")
    assert main(["export", str(student), str(tmp_path / "merged"), "--format", "merged"]) == 0
    lang, speech = speak()[0]
    np.save(tmp_path / "speech.npy", speech)
    code = f"""
import numpy, transformers
stock = transformers.pipeline("automatic-speech-recognition", {str(tmp_path / "merged")!r})
print(stock(numpy.load({str(tmp_path / "speech.npy")!r}), generate_kwargs={{"language": {lang!r}}})["text"])
"""
    done = subprocess.run([*command, code], capture_output=True, text=True, timeout=300)
    assert (
        done.stdout.strip() == Speech2Text.from_pretrained(student, device="cpu", vad_threshold=0)(speech, lang)[0][0]
    ), done.stderr


@pytest.mark.parametrize("form", ["merged", "ctranslate2"])
@pytest.mark.parametrize("system", ["student", "tiny"])
def test_a_system_that_was_not_trained_on_30_seconds_is_not_exported_for_those_who_pad_to_them(
    recipe, tmp_path, capsys, system, form
):
    if form == "ctranslate2":
        pytest.importorskip("ctranslate2", reason="needs the extra formats")
    source = tmp_path / system
    if system == "tiny":
        Whisper(tiny_whisper(), "+1s").save(source)
    else:
        shutil.copytree(recipe / "exp" / "student", source)
        config = yaml.safe_load((source / "config.yaml").read_text()) | {
            "share_30s": 0.0,
            "backbone": str(recipe / "tiny"),
        }
        (source / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["export", str(source), str(tmp_path / "out"), "--format", form]
    assert main(command) == 1 and not (tmp_path / "out").exists()
    if system == "student" or form == "ctranslate2":
        assert "train it with share_30s: 0.1 or more" in capsys.readouterr().err


def test_the_card_has_the_error_rates_of_the_runtime_alone(recipe, tmp_path):
    (tmp_path / "test_de").mkdir()
    soundfile.write(tmp_path / "a.flac", NOISE, 16_000)
    tables = {"wav.scp": tmp_path / "a.flac", "text": "ein Wort", "utt2lang": "de", "utt2spk": "a"}
    for name, value in (tables | {"utt2num_samples": len(NOISE)}).items():
        (tmp_path / "test_de" / name).write_text(f"a {value}\n")
    shutil.copytree(recipe / "exp" / "student", tmp_path / "student")
    scored = tmp_path / "student" / "decode_aware" / "results.csv"
    scored.parent.mkdir()
    scored.write_text("system,scenario,set,language,metric,value\nstudent,aware,all,de,wer_or_cer,12.5\n")
    command = ["export", str(tmp_path / "student"), "--format", "merged", "--backbone", str(recipe / "tiny")]
    assert main([*command, str(tmp_path / "plain")]) == 0
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "12.5" not in card and "Not scored." in card and "from transformers import pipeline" in card
    assert main([*command, str(tmp_path / "measured"), "--test_dirs", str(tmp_path / "test_de")]) == 0
    card = (tmp_path / "measured" / "README.md").read_text()
    stock = pipeline("automatic-speech-recognition", str(tmp_path / "measured"), dtype=torch.float32)
    words = stock(NOISE.copy(), generate_kwargs={"language": "de"})["text"]
    assert f"| de | {100 * jiwer.wer('ein wort', normalize(words, 'de')):.1f} |" in card
    assert "in the pipeline of transformers" in card


@pytest.mark.slow
def test_the_pipeline_of_transformers_finds_the_same_texts_and_times_of_words(tmp_path):
    student = make_spoken_student(tmp_path / "student")
    assert main(["export", str(student), str(tmp_path / "merged"), "--format", "merged"]) == 0
    s2t, stock = (
        Speech2Text.from_pretrained(student, device="cpu", vad_threshold=0),
        pipeline("automatic-speech-recognition", str(tmp_path / "merged"), dtype=torch.float32),
    )
    for lang, speech in speak():
        text = s2t(speech, lang)[0][0]
        assert text and stock(speech.copy(), generate_kwargs={"language": lang, "num_beams": 1})["text"].strip() == text
    words = stock(speech.copy(), return_timestamps="word", generate_kwargs={"language": lang})["chunks"]
    assert words and all(word["timestamp"][0] is not None for word in words)

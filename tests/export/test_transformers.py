"""A merged Whisper is the adapted one, here and in transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_whisper
from safetensors import safe_open
from systems import make_spoken_student, speak
from transformers import pipeline

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main
from espnet_lole.export.transformers import save_whisper_model, transformers_tokenizer
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


def test_adapters_follow_the_rules_of_vllm(recipe):
    """Rules of vLLM's PEFTHelper, see https://docs.vllm.ai/en/latest/features/lora.html."""
    linears = {name for name, module in tiny_whisper().named_modules() if isinstance(module, torch.nn.Linear)}
    for folder in (recipe / "exp" / "experts" / "adapters").iterdir():
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (
            config["r"] <= 320
            and config["bias"] == "none"
            and not config["use_dora"]
            and config["modules_to_save"] is None
        )
        assert isinstance(config["lora_alpha"], int | float) and isinstance(config["target_modules"], list)
        with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
            for key in weights.keys():  # noqa: SIM118  # not a dict
                name, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
                assert key.startswith("base_model.model.") and factor in ("A.weight", "B.weight") and name in linears
                assert name.rpartition(".")[2] in config["target_modules"]
                assert config["r"] in weights.get_slice(key).get_shape()


@pytest.mark.slow
def test_the_pipeline_of_transformers_finds_the_same_texts(tmp_path):
    student = make_spoken_student(tmp_path / "student")
    assert main(["export", str(student), str(tmp_path / "merged"), "--format", "merged"]) == 0
    s2t, stock = (
        Speech2Text.from_pretrained(student, device="cpu", vad_threshold=0),
        pipeline("automatic-speech-recognition", str(tmp_path / "merged"), dtype=torch.float32),
    )
    for lang, speech in speak():
        text = s2t(speech, lang)[0][0]
        assert text and stock(speech, generate_kwargs={"language": lang, "num_beams": 1})["text"].strip() == text

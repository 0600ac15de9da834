import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from systems import CODES

from espnet_lole.inference.load import find_system, load_transcriber, read_decoding_config
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.speech_detector import VadConfig
from espnet_lole.inference.transcriber import MoLETranscriber, Transcriber
from espnet_lole.lole.mole import RoutingConfig
from espnet_lole.lole.mole_weights import MOLE_WEIGHTS


def load(folder, **options) -> Transcriber:
    return load_transcriber(find_system(folder), "cpu", SearchConfig(maxlenratio=0.1), RoutingConfig(), **options)


@pytest.mark.parametrize("name", ["experts", "mole", "student"])
def test_adapters_are_stored_in_the_precision_of_the_training(recipe, name):
    system = find_system(recipe / "exp" / name)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        other = replace(system, conf=system.conf | {"precision": precision})
        whisper = load_transcriber(other, "cpu", SearchConfig(), RoutingConfig()).whisper
        assert {p.dtype for n, p in whisper.named_parameters() if ".lora_" in n} == {dtype}


def test_a_folder_of_adapters_is_a_system_with_the_padding_of_its_training(recipe, tmp_path):
    system = find_system(recipe / "exp" / "experts" / "adapters")
    assert (system.system, system.languages, system.backbone) == ("experts", CODES, str(recipe / "tiny"))
    assert system.pad_to == "none" and system.conf == {}
    assert find_system(recipe / "exp" / "experts" / "adapters" / "fr", languages=["fr"]).languages == ("fr",)
    shutil.copytree(recipe / "exp" / "experts" / "adapters", tmp_path / "adapters")
    weights = tmp_path / "adapters" / "de" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ValueError, match=str(weights)):
        assert find_system(tmp_path / "adapters", backbone="tiny").pad_to


@pytest.mark.parametrize("name", ["my.adapter", "v1.0", "de"])
def test_an_adapter_may_have_any_name(recipe, tmp_path, monkeypatch, name):
    monkeypatch.chdir(shutil.copytree(recipe / "exp" / "experts" / "adapters" / "fr", tmp_path / name))
    for folder in (tmp_path / name, Path(".")):
        system = find_system(folder, backbone=str(recipe / "tiny"))
        assert load_transcriber(system, "cpu", SearchConfig(), RoutingConfig()).adapter.layers


def test_subfolders_that_are_no_languages_are_refused(recipe):
    with pytest.raises(ValueError, match="adapters, whose subfolders .* got 'student'"):
        find_system(recipe / "exp" / "student" / "adapters")


def test_a_whisper_has_the_languages_of_its_generation_config(recipe, tmp_path):
    folder = shutil.copytree(recipe / "tiny", tmp_path / "whisper")
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert len(find_system(folder).languages) == 99
    (folder / "generation_config.json").write_text(json.dumps({"lang_to_id": {"<|de|>": 1, "<|zh|>": 2}}))
    assert find_system(folder).languages == ("de", "zh") and find_system(folder).system == "zero_shot"


@pytest.mark.parametrize("name", ["whisper", "merged"])
def test_a_fully_trained_whisper_is_read_from_its_subfolder(recipe, tmp_path, name):
    config = {"system": "full", "backbone": "tiny", "langs": list(CODES), "pad_to": "+1s", "precision": "float32"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(FileNotFoundError, match="is not trained to its end: .*whisper is not there"):
        find_system(tmp_path)
    shutil.copytree(recipe / "tiny", tmp_path / name)
    system = find_system(tmp_path)
    assert (system.system, system.backbone, system.pad_to) == ("full", str(tmp_path / name), "+1s")
    assert load(tmp_path).whisper.pad_to == "+1s"


def test_a_bounded_number_of_experts_is_loaded(recipe):
    folder = recipe / "exp" / "experts"
    every, two = load(folder), load(folder, max_loaded_experts=2)
    assert two.experts.languages == CODES and two.num_parameters < every.num_parameters


def test_folders_without_a_system_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a trained system"):
        find_system(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no system"):
        find_system(tmp_path)
    (tmp_path / "config.yaml").write_text("{system: transducer}")
    with pytest.raises(ValueError, match="expected system: experts, mole, .* in .*, got 'transducer'"):
        find_system(tmp_path)
    (tmp_path / "config.yaml").write_text("{system: student, langs: [de], backbone: tiny}")
    with pytest.raises(FileNotFoundError, match="is not trained to its end: .*adapters/student is not there"):
        find_system(tmp_path)


def test_mole_weights_of_other_parts_are_refused(recipe, tmp_path):
    folder = shutil.copytree(recipe, tmp_path / "recipe") / "exp" / "mole"
    file = folder / MOLE_WEIGHTS
    assert isinstance(load(folder), MoLETranscriber)
    with safe_open(file, "pt") as opened:
        fingerprints = opened.metadata()
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if "logits" not in name}, file, fingerprints)
    with pytest.raises(ValueError, match=f"{MOLE_WEIGHTS} is no MoLE of the languages de en fr zh"):
        load(folder)
    for metadata in (fingerprints | {"experts": "1"}, None):
        save_file(weights, file, metadata)
        with pytest.raises(ValueError, match=f"{MOLE_WEIGHTS} was trained on another "):
            load(folder)


def test_options_override_the_decoding_config(tmp_path):
    file = tmp_path / "decode.yaml"
    file.write_text("{beam_size: 5, batch_seconds: 30, routing: {candidates: 2}}")
    assert read_decoding_config(file) == (30, SearchConfig(beam_size=5), RoutingConfig(candidates=2), VadConfig())
    options = {"beam_size": 2, "batch_seconds": 60.0}
    assert read_decoding_config(file, options) == (
        60.0,
        SearchConfig(beam_size=2),
        RoutingConfig(candidates=2),
        VadConfig(),
    )
    with pytest.raises(ValueError, match="expected batch_seconds of .* to be a number above 0, got 0"):
        read_decoding_config(file, {"batch_seconds": 0})

"""The backbone of ESPnet's own Whisper, in the list of openai-whisper."""

import pytest
import torch
import whisper
from conftest import openai_model, tiny_whisper

from espnet_lole.train.espnet_whisper import backbone_file, register_backbone
from espnet_lole.whisper.openai import write_checkpoint


@pytest.mark.parametrize("name", ["whisper-mine", "tiny"])
def test_a_backbone_is_loaded_by_its_name_even_by_one_of_openais(tmp_path, name, monkeypatch):
    """The oracle: openai-whisper's own ``load_model``, as ESPnet calls it, without a network."""
    monkeypatch.setattr("whisper._MODELS", dict(whisper._MODELS))
    monkeypatch.setattr("whisper._ALIGNMENT_HEADS", dict(whisper._ALIGNMENT_HEADS))
    model = tiny_whisper()
    write_checkpoint(model, tmp_path / f"{name}.pt")
    conf = {"encoder": "whisper", "encoder_conf": {"whisper_model": name, "download_dir": str(tmp_path)}}
    register_backbone(conf)
    assert name in whisper.available_models() and backbone_file(conf) == tmp_path / f"{name}.pt"
    loaded = whisper.load_model(name, download_root=str(tmp_path), device="cpu").state_dict()
    expected = openai_model(model).state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "conf",
    [
        {"encoder": "conformer", "encoder_conf": {"output_size": 96}},
        {"encoder": "whisper", "encoder_conf": {"whisper_model": "tiny"}},
        {"encoder": "whisper", "encoder_conf": {"whisper_model": "tiny", "download_dir": "nowhere"}},
    ],
)
def test_openais_list_is_left_alone_without_a_file(conf):
    before = dict(whisper._MODELS)
    register_backbone(conf)
    assert backbone_file(conf) is None and before == whisper._MODELS

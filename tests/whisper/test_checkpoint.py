"""The sources of weights: OpenAI's own model is the oracle for its ``.pt`` files."""

import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import Evil, tiny_whisper
from whisper.audio import log_mel_spectrogram
from whisper.model import ModelDimensions, Whisper

from espnet_lole.whisper.checkpoint import fingerprint, load_backbone, load_config
from espnet_lole.whisper.sizes import SIZES


def save_openai(file: Path, mels: int = 80, vocab: int = 51865) -> Whisper:
    """A random model of openai-whisper, saved as OpenAI publishes its own: half precision, dims beside the tensors."""
    torch.manual_seed(0)
    model = Whisper(ModelDimensions(mels, 1500, 16, 2, 3, vocab, 448, 16, 2, 2)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape).mul(0.2).half())
    state = {name: value.half() for name, value in model.state_dict().items()}
    torch.save({"dims": asdict(model.dims), "model_state_dict": state}, file)
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model


@pytest.mark.parametrize(("mels", "vocab"), [(80, 51865), (128, 51866)])
@torch.no_grad()
def test_openai_file_folder_and_openais_model_give_the_same(tmp_path, mels, vocab):
    oracle = save_openai(tmp_path / "tiny.pt", mels, vocab)
    from_file = load_backbone(str(tmp_path / "tiny.pt"), "30s")
    from_file.model.save_pretrained(tmp_path / "folder")
    from_folder = load_backbone(str(tmp_path / "folder"), "30s")
    speech = torch.randn(1, 8000) * 0.1
    tokens = torch.tensor([[50258, 50261, 50359, 50363, 2425]])
    mel = log_mel_spectrogram(torch.nn.functional.pad(speech, (0, 472000)), mels)
    expected = oracle(mel, tokens)
    for backbone in (from_file, from_folder):
        encoded = backbone.encode(speech, torch.tensor([8000]))
        torch.testing.assert_close(backbone.logits(backbone.decode(tokens, encoded)), expected, atol=2e-4, rtol=1e-4)
    assert fingerprint(from_file) == fingerprint(from_folder)
    assert from_file.model.proj_out.weight is from_file.decoder.embed_tokens.weight
    read, saved = load_config(str(tmp_path / "tiny.pt")).to_dict(), from_folder.model.config.to_dict()
    assert {name for name in read if read[name] != saved[name]} <= {"architectures", "dtype", "_name_or_path"}


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint of openai/whisper at .*gone.pt, found none"):
        load_config(str(tmp_path / "gone.pt"))
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="expected a checkpoint of openai/whisper, got in .*text.pt"):
        load_config(str(tmp_path / "text.pt"))
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected dims and model_state_dict"):
        load_config(str(tmp_path / "other.pt"))
    save_openai(tmp_path / "tiny.pt")
    saved = torch.load(tmp_path / "tiny.pt", weights_only=True)
    saved["model_state_dict"]["encoder.conv1.bias"] = torch.zeros(3)
    del saved["model_state_dict"]["decoder.token_embedding.weight"]
    torch.save(saved, tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match="got 3 that differ, e.g. model.decoder.embed_tokens.weight: None"):
        load_backbone(str(tmp_path / "tiny.pt"))


def test_sizes_are_those_of_the_architecture():
    """The published counts of parameters, in millions (the model card), against the meta device."""
    from transformers import WhisperForConditionalGeneration

    published = {"tiny": 39, "base": 74, "small": 244, "medium": 769, "large-v2": 1550, "large-v3": 1550, "large-v3-turbo": 809}
    for name, millions in published.items():
        with torch.device("meta"):
            model = WhisperForConditionalGeneration(SIZES[f"openai/whisper-{name}"].config())
        assert model.num_parameters() == pytest.approx(1e6 * millions, rel=0.05), name
    assert tiny_whisper().config.eos_token_id == SIZES["openai/whisper-tiny"].config().eos_token_id


def test_weights_in_a_pickle_are_not_read(tmp_path):
    tiny_whisper().config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(FileNotFoundError, match="expected the weights of a Whisper as safetensors"):
        load_backbone(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_code_beside_the_weights_is_not_run(tmp_path):
    tiny_whisper().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("{", '{"auto_map": {"AutoModel": "evil.Evil"},', 1))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load_backbone(str(tmp_path))
    assert not (tmp_path / "ran").exists()

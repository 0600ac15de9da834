"""Sources of weights: OpenAI's own model is the oracle for its ``.pt`` files."""

import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import Evil, tiny_whisper
from transformers import WhisperConfig, WhisperForConditionalGeneration
from whisper import _ALIGNMENT_HEADS, DecodingOptions
from whisper import model as openai_whisper
from whisper.audio import log_mel_spectrogram
from whisper.decoding import DecodingTask

from espnet_lole.whisper.checkpoint import (
    empty_whisper,
    fingerprint,
    load_config,
    load_whisper,
    precision_dtype,
)
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.openai import configure_generation, write_checkpoint


def save_openai(file: Path, mels: int = 80, vocab: int = 51865) -> openai_whisper.Whisper:
    """Return a random model of openai-whisper, saved as OpenAI publishes its own: half precision, tensors and dims."""
    torch.manual_seed(0)
    model = openai_whisper.Whisper(openai_whisper.ModelDimensions(mels, 1500, 16, 2, 3, vocab, 448, 16, 2, 2)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape).mul(0.2).half())
    state = {name: value.half() for name, value in model.state_dict().items()}
    torch.save({"dims": asdict(model.dims), "model_state_dict": state}, file)
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model


@pytest.mark.parametrize(("mels", "vocab"), [(80, 51865), (128, 51866)])
@torch.no_grad()
def test_openais_file_its_folder_and_its_own_model_compute_the_same(tmp_path, mels, vocab):
    oracle = save_openai(tmp_path / "tiny.pt", mels, vocab)
    from_file = load_whisper(str(tmp_path / "tiny.pt"), "30s")
    from_file.model.save_pretrained(tmp_path / "folder")
    from_folder = load_whisper(str(tmp_path / "folder"), "30s")
    speech = torch.randn(1, 8000) * 0.1
    tokens = torch.tensor([[50258, 50261, 50359, 50363, 2425]])
    mel = log_mel_spectrogram(torch.nn.functional.pad(speech, (0, 472000)), mels)
    expected = oracle(mel, tokens)
    for whisper in (from_file, from_folder):
        encoded = whisper.encode(speech, torch.tensor([8000]))
        torch.testing.assert_close(whisper.logits(whisper.decode(tokens, encoded)), expected, atol=2e-4, rtol=1e-4)
    assert fingerprint(from_file) == fingerprint(from_folder)
    assert from_file.model.proj_out.weight is from_file.decoder.embed_tokens.weight
    read, saved = load_config(str(tmp_path / "tiny.pt")).to_dict(), from_folder.model.config.to_dict()
    assert {name for name in read if read[name] != saved[name]} <= {"architectures", "dtype", "_name_or_path"}


def test_a_written_pt_file_is_that_of_openais_own_model(tmp_path):
    model = save_openai(tmp_path / "tiny.pt")
    write_checkpoint(load_whisper(str(tmp_path / "tiny.pt")).model, tmp_path / "again.pt")
    before, again = (torch.load(tmp_path / name, weights_only=True) for name in ("tiny.pt", "again.pt"))
    assert again["dims"] == before["dims"]
    model.load_state_dict(again["model_state_dict"])
    assert all(
        torch.equal(again["model_state_dict"][name], value.float())
        for name, value in before["model_state_dict"].items()
    )


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
        load_whisper(str(tmp_path / "tiny.pt"))


def test_sizes_are_those_of_the_architecture():
    """The published counts of parameters, in millions (the model card), against the meta device."""
    published = {
        "tiny": 39,
        "base": 74,
        "small": 244,
        "medium": 769,
        "large-v2": 1550,
        "large-v3": 1550,
        "large-v3-turbo": 809,
    }
    for name, millions in published.items():
        whisper = empty_whisper(f"openai/whisper-{name}")
        assert whisper.device.type == "meta" and fingerprint(whisper) == 0
        assert whisper.model.num_parameters() == pytest.approx(1e6 * millions, rel=0.05), name


def test_weights_in_a_pickle_are_not_read(tmp_path):
    tiny_whisper().config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(FileNotFoundError, match="expected the weights of a Whisper as safetensors"):
        load_whisper(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_damaged_weights_are_named(tmp_path):
    tiny_whisper().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"the weights of the Whisper {tmp_path} are damaged"):
        load_whisper(str(tmp_path))


def test_code_in_the_folder_of_the_weights_is_not_run(tmp_path):
    tiny_whisper().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("{", '{"auto_map": {"AutoModel": "evil.Evil"},', 1))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load_whisper(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_fingerprint_is_of_the_weights_and_not_of_their_precision(tmp_path):
    tiny_whisper().save_pretrained(tmp_path)
    loaded = [load_whisper(str(tmp_path), precision=name) for name in ("float32", "bfloat16")]
    assert len({*map(fingerprint, loaded), fingerprint(Whisper(tiny_whisper()))}) == 1
    assert fingerprint(loaded[0]) != fingerprint(Whisper(tiny_whisper(seed=1)))


def test_weights_are_read_with_the_padding_that_they_were_trained_with(tmp_path):
    """Which ``Whisper.save`` notes, and older files call a window; stock weights were trained on 30 s."""
    tiny_whisper().save_pretrained(tmp_path / "stock")
    Whisper(tiny_whisper(), "none").save(tmp_path / "none")
    Whisper(tiny_whisper(), "none").save(tmp_path / "older")
    config = tmp_path / "older" / "config.json"
    config.write_text(config.read_text().replace('"pad_to": "none"', '"window": "short+1s"'))
    paddings = [load_whisper(str(tmp_path / name)).pad_to for name in ("stock", "none", "older")]
    assert paddings == ["30s", "none", "+1s"]
    assert load_whisper(str(tmp_path / "none"), "30s").pad_to == "30s"
    Whisper(tiny_whisper(), "none", share_30s=0.25).save(tmp_path / "mixed")
    shares = [load_whisper(str(tmp_path / name)).share_30s for name in ("stock", "older", "mixed")]
    assert shares == [0.0, 0.0, 0.25]


def test_loaded_weights_are_frozen_and_a_saved_whisper_is_a_stock_one(tmp_path):
    whisper = Whisper(tiny_whisper(), "+1s")
    whisper.save(tmp_path)
    assert not any(p.requires_grad for p in load_whisper(str(tmp_path)).parameters())
    stock = WhisperForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(stock[name], value) for name, value in whisper.model.state_dict().items())


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected backbone to be a folder"):
        load_whisper("nowhere/at-all")
    with pytest.raises(ValueError, match="expected precision: float32, bfloat16, auto, got 'float16'"):
        precision_dtype("float16")
    assert precision_dtype("auto") in (torch.float32, torch.bfloat16)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="expected a Whisper, got a checkpoint of '"):
        load_whisper(str(tmp_path))


@pytest.mark.parametrize("name", ["tiny", "base", "small", "medium", "large-v1", "large-v2", "large-v3", "turbo"])
def test_a_pt_file_has_the_generation_configuration_of_openai(name):
    """The oracle: openai-whisper's own mask and its list of suppressed tokens."""
    heads = {"tiny": (4, 6), "base": (6, 8), "small": (12, 12), "medium": (24, 16), "turbo": (4, 20)}.get(
        name, (32, 20)
    )
    mels = 128 if name in ("large-v3", "turbo") else 80
    vocab = 51866 if mels == 128 else 51865
    width = 4 * heads[1]
    config = WhisperConfig(
        vocab_size=vocab, num_mel_bins=mels, decoder_layers=heads[0], decoder_attention_heads=heads[1], d_model=width,
        encoder_layers=1, encoder_attention_heads=1,
    )  # fmt: skip
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    dims = openai_whisper.ModelDimensions(mels, 1500, width, heads[1], 1, vocab, 448, width, heads[1], heads[0])
    oracle = openai_whisper.Whisper(dims)
    configure_generation(model, name if name.startswith("large") else "my-finetuning")
    oracle.set_alignment_heads(_ALIGNMENT_HEADS[name])
    expected = oracle.alignment_heads.indices().T.tolist()
    assert model.generation_config.alignment_heads == expected
    task = DecodingTask(oracle, DecodingOptions(language="de"))
    assert model.generation_config.suppress_tokens == sorted(task._get_suppress_tokens())
    assert model.generation_config.begin_suppress_tokens == [*task.tokenizer.encode(" "), task.tokenizer.eot]

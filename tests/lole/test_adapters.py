"""Adapters on disk: peft is the oracle in both directions."""

import peft
import pytest
import torch
from conftest import random_experts, tiny_whisper
from safetensors.torch import load_file, save_file

from espnet_lole.lole.adapters import Adapter, adapters_in, load_adapter, load_adapters, save_adapter, trained_pad_to
from espnet_lole.whisper.model import Whisper

LANGS = ("de", "en", "zh")
TOKENS = torch.tensor([[50258, 50259, 50359, 50363, 11, 22, 33]])
LAYER = "model.encoder.layers.0.fc1"


@torch.no_grad()
def stock_logits(model, speech):
    """Return the logits of a stock transformers model for 30 seconds of audio."""
    mel, _ = Whisper(tiny_whisper()).features(*speech)
    return model(input_features=mel, decoder_input_ids=TOKENS).logits


@torch.no_grad()
def logits(experts, speech, lang):
    whisper = experts.whisper
    with experts.activate([experts.index(lang)]):
        return whisper.logits(whisper.decode(TOKENS, whisper.encode(*speech)))


@pytest.fixture
def half_minute():
    return torch.randn(1, 480_000, generator=torch.Generator().manual_seed(3)) * 0.1, torch.tensor([480_000])


def test_peft_loads_our_experts(tmp_path, half_minute):
    experts = random_experts()
    for lang in LANGS:
        save_adapter(experts, lang, tmp_path / lang, "tiny")
        stock = peft.PeftModel.from_pretrained(tiny_whisper(), tmp_path / lang).eval()
        oracle = stock_logits(stock, half_minute)
        torch.testing.assert_close(logits(experts, half_minute, lang), oracle, atol=2e-3, rtol=1e-3)
    config = peft.PeftConfig.from_pretrained(tmp_path / "de")
    assert config.base_model_name_or_path == "tiny" and set(config.target_modules) == set(experts.config.targets)


def test_an_adapter_of_smaller_rank_and_fewer_targets_is_loaded(tmp_path, half_minute):
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["q_proj", "fc1"], init_lora_weights=False, use_rslora=True,
        alpha_pattern={"fc1": 3}, rank_pattern={"encoder_attn.q_proj": 1},
    )  # fmt: skip
    stock = peft.get_peft_model(tiny_whisper(), config).eval()
    stock.save_pretrained(tmp_path)
    experts = random_experts()
    load_adapter(experts, "en", Adapter.read(tmp_path))
    torch.testing.assert_close(
        logits(experts, half_minute, "en"), stock_logits(stock, half_minute), atol=2e-3, rtol=1e-3
    )


def test_save_and_load_is_exact(tmp_path):
    experts, fresh = random_experts(), random_experts(seed=1)
    save_adapter(experts, "en", tmp_path / "de", "tiny")
    save_adapter(experts, "de", tmp_path / "de", "tiny")  # replaces it
    assert [p.name for p in tmp_path.iterdir()] == ["de"]
    before = {name: layer.lora_B["en"].clone() for name, layer in fresh.layers.items()}
    load_adapter(fresh, "zh", Adapter.read(tmp_path / "de"))
    for name, layer in experts.layers.items():
        assert torch.equal(fresh.layers[name].lora_A["zh"], layer.lora_A["de"])
        assert torch.equal(fresh.layers[name].lora_B["zh"], layer.lora_B["de"])
        assert torch.equal(fresh.layers[name].lora_B["en"], before[name])


def test_an_adapter_notes_the_padding_of_its_training(tmp_path):
    for pad_to in ("none", "+1s", "30s"):
        save_adapter(random_experts(whisper=Whisper(tiny_whisper(), pad_to)), "de", tmp_path / "de", "tiny")
        assert trained_pad_to(tmp_path / "de") == pad_to
    file = tmp_path / "de" / "adapter_model.safetensors"
    for metadata, expected in (({"window": "short"}, "none"), ({"window": "short+1s"}, "+1s"), ({}, "30s")):
        save_file(load_file(file), file, metadata)
        assert trained_pad_to(tmp_path / "de") == expected
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="expected whole weights in"):
        trained_pad_to(tmp_path / "de")
    file.rename(tmp_path / "de" / "adapter_model.bin")
    assert trained_pad_to(tmp_path / "de") == "30s"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 2}, "expected rank 2 at most, got 4"), ({"targets": ("fc1",)}, "expected an adapter of targets")],
)
def test_adapters_that_do_not_fit_are_refused(tmp_path, options, message):
    save_adapter(random_experts(), "de", tmp_path / "de", "tiny")
    with pytest.raises(ValueError, match=message):
        load_adapter(random_experts(**options), "de", Adapter.read(tmp_path / "de"))


def test_an_adapter_of_another_depth_is_refused(tmp_path):
    """As one of a distilled or a turbo Whisper, whose matrices are as wide as those of the large one."""
    for name, layers in (("shallow", 1), ("deep", 2)):
        whisper = tiny_whisper()
        whisper.model.decoder.layers = whisper.model.decoder.layers[:layers]
        config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(whisper, config).save_pretrained(tmp_path / name)
    shallow = tiny_whisper()
    shallow.model.decoder.layers = shallow.model.decoder.layers[:1]
    with pytest.raises(ValueError, match="expected weights for every target of .*decoder.layers.1.*another backbone"):
        load_adapters(Whisper(tiny_whisper()), tmp_path, ["shallow"])
    with pytest.raises(
        ValueError, match="expected weights for linears of the backbone.*decoder.layers.1.*another backbone"
    ):
        load_adapters(Whisper(shallow), tmp_path, ["deep"])


def test_a_wider_backbone_is_refused_and_nothing_is_changed(tmp_path):
    save_adapter(random_experts(), "de", tmp_path / "de", "tiny")
    wide = tiny_whisper()
    for layer in wide.model.encoder.layers:
        layer.fc1 = torch.nn.Linear(16, 48)
    other = random_experts(whisper=Whisper(wide))
    before = {name: layer.lora_A["de"].detach().clone() for name, layer in other.layers.items()}
    with pytest.raises(ValueError, match="made for another backbone"):
        load_adapter(other, "de", Adapter.read(tmp_path / "de"))
    assert all(torch.equal(layer.lora_A["de"], before[name]) for name, layer in other.layers.items())


def test_a_folder_of_adapters_becomes_experts(tmp_path):
    """Of the largest rank among them, in the given order of languages; each computes what it did."""
    small, large = (
        random_experts(("zh",), rank=2, alpha=6.0, targets=("fc1",)),
        random_experts(("de",), rank=4, alpha=2.0),
    )
    save_adapter(small, "zh", tmp_path / "zh", "tiny")
    save_adapter(large, "de", tmp_path / "de", "tiny")
    assert adapters_in(tmp_path) == ["de", "zh"]
    loaded = load_adapters(Whisper(tiny_whisper()), tmp_path, ["zh", "de"])
    assert loaded.languages == ("zh", "de") and loaded.config.rank == 4
    for name, layer in loaded.layers.items():
        for lang, experts in (("zh", small), ("de", large)):
            update = layer.scale * layer.lora_B[lang] @ layer.lora_A[lang]
            oracle = experts.layers.get(name)
            expected = torch.zeros(()) if oracle is None else oracle.scale * oracle.lora_B[lang] @ oracle.lora_A[lang]
            torch.testing.assert_close(update, expected.expand_as(update))
    assert load_adapters(Whisper(tiny_whisper()), tmp_path).languages == ("de", "zh")


def test_missing_adapters_are_named(tmp_path):
    save_adapter(random_experts(), "de", tmp_path / "de", "tiny")
    with pytest.raises(FileNotFoundError, match="expected adapters of de en in .*, got \\['de'\\]"):
        load_adapters(Whisper(tiny_whisper()), tmp_path, ["de", "en"])
    with pytest.raises(FileNotFoundError, match="expected adapters of some languages"):
        load_adapters(Whisper(tiny_whisper()), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no expert for 'fr'"):
        save_adapter(random_experts(), "fr", tmp_path / "fr", "tiny")
    (tmp_path / "de").rename(tmp_path.parent / "outside")
    (tmp_path / "in").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected adapters of \.\./outside"):
        load_adapters(Whisper(tiny_whisper()), tmp_path / "in", ["../outside"])

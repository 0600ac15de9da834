import json

import peft
import pytest
import torch
from conftest import tiny_whisper
from test_experts import CONFIG, LANGS, TOKENS, run, with_experts

from espnet_lole.lole.adapters import Adapter, load_bank, load_expert, save_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.whisper.model import Backbone


@torch.no_grad()
def stock_logits(model, speech):
    """Logits of a stock transformers model for 30 seconds of audio."""
    mel, _ = Backbone(tiny_whisper()).features(*speech)
    return model(input_features=mel, decoder_input_ids=TOKENS).logits


@pytest.fixture
def half_minute():
    return torch.randn(1, 480_000, generator=torch.Generator().manual_seed(3)) * 0.1, torch.tensor([480_000])


def test_peft_loads_our_experts(tmp_path, half_minute):
    backbone, bank = with_experts()
    for lang in LANGS:
        save_expert(bank, lang, tmp_path / lang, "tiny")
    for row, lang in enumerate(LANGS):
        stock = peft.PeftModel.from_pretrained(tiny_whisper(), tmp_path / lang).eval()
        with bank.routed(torch.tensor([row])):
            ours = run(backbone, half_minute)
        torch.testing.assert_close(ours, stock_logits(stock, half_minute), atol=2e-3, rtol=1e-3)


def test_we_load_adapters_of_peft(tmp_path, half_minute):
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "fc1"], use_rslora=True, init_lora_weights=False)
    stock = peft.get_peft_model(tiny_whisper(), config).eval()
    stock.save_pretrained(tmp_path)
    backbone, bank = with_experts()
    load_expert(bank, "en", Adapter.read(tmp_path))
    with bank.routed(torch.tensor([1])):
        torch.testing.assert_close(run(backbone, half_minute), stock_logits(stock, half_minute), atol=2e-3, rtol=1e-3)


def test_save_and_load_is_exact(tmp_path):
    _, bank = with_experts()
    save_expert(bank, "de", tmp_path / "de", "tiny")
    save_expert(bank, "de", tmp_path / "de", "tiny")  # replaces it
    _, fresh = with_experts(trained=False)
    load_expert(fresh, "zh", Adapter.read(tmp_path / "de"))
    for name, layer in bank.layers.items():
        assert torch.equal(fresh.layers[name].lora_A[2], layer.lora_A[0])
        assert torch.equal(fresh.layers[name].lora_B[2], layer.lora_B[0])
    assert [p.name for p in tmp_path.iterdir()] == ["de"]


@pytest.mark.parametrize(
    ("bank_config", "message"),
    [
        (ExpertConfig(rank=2), "expected rank 2 at most, got 4"),
        (ExpertConfig(rank=4, targets=("fc1",)), "expected an adapter of targets"),
    ],
)
def test_misfits_are_refused(tmp_path, bank_config, message):
    _, bank = with_experts()
    save_expert(bank, "de", tmp_path / "de", "tiny")
    _, other = with_experts(config=bank_config, trained=False)
    with pytest.raises(ValueError, match=message):
        load_expert(other, "de", Adapter.read(tmp_path / "de"))


def test_missing_and_foreign_adapters(tmp_path):
    _, bank = with_experts()
    with pytest.raises(FileNotFoundError, match="adapter_config.json is not there"):
        load_expert(bank, "de", Adapter.read(tmp_path))
    save_expert(bank, "de", tmp_path / "de", "tiny")
    file = tmp_path / "de" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))
    with pytest.raises(ValueError, match="expected a plain LoRA adapter, got one with"):
        load_expert(bank, "de", Adapter.read(tmp_path / "de"))


def test_wider_backbone_is_refused(tmp_path):
    _, bank = with_experts()
    save_expert(bank, "de", tmp_path / "de", "tiny")
    wide = tiny_whisper()
    for layer in wide.model.encoder.layers:
        layer.fc1 = torch.nn.Linear(16, 48)
    other = ExpertBank(wide, LANGS, CONFIG)
    before = {name: layer.lora_A.detach().clone() for name, layer in other.layers.items()}
    with pytest.raises(ValueError, match="made for another backbone"):
        load_expert(other, "de", Adapter.read(tmp_path / "de"))
    assert all(torch.equal(layer.lora_A, before[name]) for name, layer in other.layers.items())


def test_a_folder_of_adapters_becomes_a_bank(tmp_path):
    _, bank = with_experts()
    for lang in ("de", "zh"):
        save_expert(bank, lang, tmp_path / lang, "tiny")
    whisper = tiny_whisper()
    loaded = load_bank(whisper, tmp_path, ["zh", "de"])
    assert loaded.languages == ("zh", "de") and loaded.config.rank == bank.config.rank
    for name, layer in bank.layers.items():
        assert torch.equal(loaded.layers[name].lora_B[1], layer.lora_B[bank.index("de")])
        assert loaded.layers[name].scale == layer.scale
    with pytest.raises(FileNotFoundError, match="expected adapters of de en in .*, got \\['de', 'zh'\\]"):
        load_bank(tiny_whisper(), tmp_path, ["de", "en"])
    with pytest.raises(FileNotFoundError, match="expected adapters of some languages"):
        load_bank(tiny_whisper(), tmp_path / "nowhere")
    assert load_bank(tiny_whisper(), tmp_path).languages == ("de", "zh")

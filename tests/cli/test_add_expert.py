"""`lole add-expert`: adapters of stock peft become experts."""

import numpy as np
import peft
import pytest
import torch
from conftest import tiny_whisper
from systems import make_recipe

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main
from espnet_lole.inference.search import SearchConfig
from espnet_lole.whisper.features import LogMel
from espnet_lole.whisper.tokenizer import WhisperTokenizer

NOISE = np.random.default_rng(0).normal(0, 0.1, 480_000).astype(np.float32)


@pytest.fixture
def made(tmp_path):
    """A recipe's folder, and an adapter of stock peft of another rank and other targets than its experts."""
    config = peft.LoraConfig(
        r=6, lora_alpha=9, target_modules=["q_proj", "fc1"], use_rslora=True, init_lora_weights=False
    )
    stock = peft.get_peft_model(tiny_whisper(), config).eval()
    stock.save_pretrained(tmp_path / "foreign")
    return make_recipe(tmp_path), stock


def transcribe(folder, lang) -> list[int]:
    s2t = Speech2Text.from_pretrained(folder, device="cpu")
    s2t.search = SearchConfig(maxlenratio=0.005)
    return s2t(NOISE, lang)[0][2]


def test_an_added_expert_decodes_as_in_transformers_and_leaves_the_others_alone(made, capsys):
    folder, stock = made
    experts = folder / "exp" / "experts"
    before = transcribe(experts, "de")
    assert main(["add-expert", str(folder / "foreign"), "--lang", "it", "--model", str(experts)]) == 0
    assert "added the expert of it" in capsys.readouterr().out
    mel, _ = LogMel()(torch.from_numpy(NOISE)[None], torch.tensor([480_000]))
    ids = torch.tensor([WhisperTokenizer(51865).prompt("it", timestamps=False)])
    with torch.no_grad():
        for _ in range(6):
            logits = stock(input_features=mel, decoder_input_ids=ids).logits[0, -1, :50258]
            ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    assert transcribe(experts, "it")[:6] == ids[0, 4:].tolist()
    assert transcribe(experts, "de") == before


def test_an_expert_is_replaced_on_request(made):
    folder, _ = made
    experts = folder / "exp" / "experts"
    before = transcribe(experts, "de")
    assert main(["add-expert", str(folder / "foreign"), "--lang", "de", "--model", str(experts), "--replace"]) == 0
    assert transcribe(experts, "de") != before

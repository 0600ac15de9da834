"""`lole add-expert`: adapters of stock peft become experts."""

import numpy as np
import peft
import pytest
import torch
from conftest import tiny_whisper
from systems import make_recipe

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main
from espnet_lole.inference.search import Hypothesis, SearchConfig
from espnet_lole.whisper.features import LogMel
from espnet_lole.whisper.tokenizer import WhisperTokenizer

NOISE = np.random.default_rng(0).normal(0, 0.1, 480_000).astype(np.float32)


@pytest.fixture
def made(tmp_path):
    """Return a recipe's folder and a stock model, whose adapter has another rank and other targets than the experts."""
    config = peft.LoraConfig(
        r=6, lora_alpha=9, target_modules=["q_proj", "fc1"], use_rslora=True, init_lora_weights=False
    )
    stock = peft.get_peft_model(tiny_whisper(), config).eval()
    stock.save_pretrained(tmp_path / "foreign")
    return make_recipe(tmp_path), stock


def transcribe(folder, lang) -> Hypothesis:
    s2t = Speech2Text.from_pretrained(folder, device="cpu")
    s2t.search = SearchConfig(maxlenratio=0.005)
    return s2t(NOISE, lang)[0][3]


def test_an_added_expert_decodes_as_in_transformers_and_leaves_the_others_alone(made, capsys):
    folder, stock = made
    experts = folder / "exp" / "experts"
    before = transcribe(experts, "de")
    assert main(["add-expert", str(folder / "foreign"), "--lang", "it", "--model", str(experts)]) == 0
    assert "added the expert of it" in capsys.readouterr().out
    assert transcribe(experts, "de") == before
    added, tokenizer = transcribe(experts, "it"), WhisperTokenizer(51865)
    assert abs(added.score - before.score) > 5e-3
    mel, _ = LogMel()(torch.from_numpy(NOISE)[None], torch.tensor([480_000]))
    ids = torch.tensor([[*tokenizer.prompt("it"), *added.tokens, tokenizer.eot]])
    with torch.no_grad():
        logits = stock(input_features=mel, decoder_input_ids=ids[:, :-1]).logits[0, 3:, : tokenizer.eot + 1]
    assert logits.argmax(-1)[:-1].tolist() == added.tokens  # the end is forced by the maximum length
    log_probs = logits.log_softmax(-1).gather(1, ids[0, 4:, None])
    assert added.score == pytest.approx(log_probs.mean().item(), abs=5e-4)


def test_an_expert_is_replaced_on_request(made):
    folder, _ = made
    experts, weights = folder / "exp" / "experts", "adapter_model.safetensors"
    assert main(["add-expert", str(folder / "foreign"), "--lang", "de", "--model", str(experts), "--replace"]) == 0
    assert (experts / "adapters" / "de" / weights).read_bytes() == (folder / "foreign" / weights).read_bytes()

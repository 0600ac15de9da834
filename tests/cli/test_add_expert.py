"""`lole add-expert`: adapters of stock peft become experts."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from conftest import tiny_whisper
from systems import make_recipe

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main
from espnet_lole.inference.load import find_system
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


def add(adapter: Path, lang: str, experts: Path, *options: str) -> int:
    return main(["add-expert", str(adapter), "--lang", lang, "--model", str(experts), *options])


def transcribe(folder, lang) -> Hypothesis:
    s2t = Speech2Text.from_pretrained(folder, device="cpu", vad_threshold=0)
    s2t.search = SearchConfig(maxlenratio=0.005)
    return s2t(NOISE, lang)[0][3]


def test_an_added_expert_decodes_as_in_transformers_and_leaves_the_others_alone(made, capsys):
    folder, stock = made
    experts = folder / "exp" / "experts"
    before = transcribe(experts, "de")
    assert add(folder / "foreign", "it", experts, "--pad_to", "none") == 0
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


def test_an_expert_is_replaced_on_request_and_peft_loads_it(made):
    folder, stock = made
    experts, ids = folder / "exp" / "experts", torch.tensor([[50258, 50259, 11, 22]])
    assert add(folder / "foreign", "de", experts, "--replace", "--pad_to", "none") == 0
    written = peft.PeftModel.from_pretrained(tiny_whisper(), experts / "adapters" / "de").eval()
    mel, _ = LogMel()(torch.from_numpy(NOISE)[None], torch.tensor([480_000]))
    with torch.no_grad():
        expected, logits = (m(input_features=mel, decoder_input_ids=ids).logits for m in (stock, written))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_experts_of_another_padding_are_refused_with_the_remedy(made, capsys):
    """An adapter that notes none was trained on 30 s, as everybody's are."""
    folder, _ = made
    experts, foreign = folder / "exp" / "experts", folder / "foreign"
    for options, pad_to in (((), "30s"), (("--pad_to", "+1s"), r"\+1s")):
        assert add(foreign, "it", experts, *options) == 1
        message = capsys.readouterr().err
        assert re.search(rf"foreign was trained with pad_to: {pad_to}, the experts with none", message)
        assert f"--model {foreign}, or give --pad_to none if" in message
    assert find_system(foreign, str(folder / "tiny")).pad_to == "30s"
    shutil.copytree(foreign, experts / "adapters" / "it")  # by hand
    with pytest.raises(ValueError, match="must be trained with one pad_to, got .*30s: .*/it.* --pad_to PAD_TO"):
        Speech2Text.from_pretrained(experts, device="cpu").transcriber  # noqa: B018  # which loads
    assert add(experts / "adapters" / "it", "it", experts, "--replace", "--pad_to", "none") == 0
    assert find_system(experts).pad_to == "none"


def test_adapters_without_a_training_have_one_padding(made, capsys):
    folder, _ = made
    shutil.copytree(folder / "foreign", folder / "adapters" / "it")
    assert add(folder / "foreign", "pt", folder / "adapters", "--backbone", str(folder / "tiny")) == 0
    assert find_system(folder / "adapters", str(folder / "tiny")).pad_to == "30s"
    assert add(folder / "foreign", "fr", folder / "adapters", "--backbone", str(folder / "tiny"), "--pad_to", "no") == 1
    assert "pad_to: no, the experts with 30s" in capsys.readouterr().err


def test_an_adapter_of_another_published_whisper_is_refused(made, capsys):
    """The matrices of large-v2 and large-v3 are equally wide."""
    folder, _ = made
    for name, base in (("it", "openai/whisper-large-v2"), ("pt", "openai/whisper-large-v3")):
        file = shutil.copytree(folder / "foreign", folder / "adapters" / name) / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    assert add(folder / "adapters" / "pt", "fr", folder / "adapters") == 1
    assert (
        "was trained on openai/whisper-large-v3, but the experts on openai/whisper-large-v2" in capsys.readouterr().err
    )

import json
import shutil

import numpy as np
import peft
import pytest
import torch
import yaml
from conftest import tiny_whisper
from espnet2.main_funcs.pack_funcs import unpack
from huggingface_hub import ModelCard
from safetensors import safe_open
from systems import make_recipe
from transformers import pipeline

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main
from espnet_lole.export.card import card
from espnet_lole.export.facts import Facts, gather
from espnet_lole.export.whisper import save_merged, stock_tokenizer
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.system import find_system
from espnet_lole.lole.adapters import save_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.whisper.checkpoint import load_backbone
from espnet_lole.whisper.features import LogMel
from espnet_lole.whisper.tokenizer import WhisperTokens
from lole_mini.speech import split_texts, utterances


@pytest.fixture(scope="module")
def row() -> np.ndarray:
    """A second of noise."""
    return np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)


def said(folder, row, lang=None) -> list[int]:
    s2t = Speech2Text.from_pretrained(folder, device="cpu")
    s2t.search = SearchConfig(maxlenratio=0.2)
    return s2t(row, lang)[0][2]


@pytest.mark.parametrize(("system", "lang"), [("mole", None), ("student", None), ("experts", "fr")])
def test_an_export_decodes_alike_wherever_it_is(tmp_path, row, system, lang):
    made = make_recipe(tmp_path / "made")
    before = said(made / "exp" / system, row, lang)
    assert main(["export", str(made / "exp" / system), str(tmp_path / "here")]) == 0
    assert main(["export", str(tmp_path / "here"), str(tmp_path / "pack.zip"), "--format", "pack"]) == 0
    shutil.rmtree(made)
    (tmp_path / "here").rename(tmp_path / "there")
    assert said(tmp_path / "there", row, lang) == before
    found = unpack(tmp_path / "pack.zip", tmp_path / "unpacked")
    assert said((tmp_path / "unpacked"), row, lang) == before
    assert yaml.safe_load(open(found["asr_train_config"]))["system"] == system
    assert not list((tmp_path / "there").rglob("*.pth"))


def test_a_merged_expert_is_the_expert(recipe, row, tmp_path):
    assert main(["export", str(recipe / "exp" / "experts"), str(tmp_path / "de"), "--format", "merged", "--lang", "de"]) == 0
    assert find_system(tmp_path / "de").languages == ("de",)
    assert said(tmp_path / "de", row, "de") == said(recipe / "exp" / "experts", row, "de")


def test_the_card_needs_no_edit(tmp_path):
    facts = Facts(
        "mole", "openai/whisper-medium", ("de", "zh"), {"de": 64, "zh": 64}, {"de": 10_000, "zh": 10_000}, 20, 5,
        {"acc": 0.9}, {"de": 1.5, "zh": 2.0}, {("aware", "de"): 7.25, ("agnostic", "de"): 8.5, ("aware", "zh"): 5.0},
    )  # fmt: skip
    (tmp_path / "README.md").write_text(card(facts, "my system", "mit", "Common Voice"))
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.language == ["de", "zh"] and read.data.license == "mit"
    assert read.data.base_model == "openai/whisper-medium" and read.data.pipeline_tag == "automatic-speech-recognition"
    for part in ("| de | 7.2 | 8.5 |", "| zh | 5.0 |  |", "Common Voice", "| de | 1.50 |", "layers 1 to 20", "5 epochs"):
        assert part in read.text


def test_figures_survive_the_export(tmp_path):
    made = make_recipe(tmp_path)
    folder = made / "exp" / "mole"
    (folder / "train.log").write_text("x 1epoch results: [train] loss=1, [valid] loss=0.5, acc=0.75, time=1 minute\n")
    (folder / "greedy_aware").mkdir()
    head = "system,scenario,set,language,metric,value\n"
    lines = "mole_l3,aware,test_de,de,error,1.0\nmole_l3,aware,all,de,error,12.5\nmole_l3,aware,all,de,wer,13.0\n"
    (folder / "greedy_aware" / "results.csv").write_text(head + lines)
    (made / "exp" / "results.csv").write_text(head + "mole,aware,all,de,error,99.0\n")
    raw = made / "dump" / "raw" / "train"
    raw.mkdir(parents=True)
    (raw / "utt2lang").write_text("a de\nb fr\n")
    (raw / "utt2num_samples").write_text("a 57600000\nb 28800000\n")
    conf = yaml.safe_load((folder / "config.yaml").read_text())
    conf["train_data_path_and_name_and_type"] = [["dump/raw/train/utt2lang", "lang", "text"]]
    (folder / "config.yaml").write_text(yaml.safe_dump(conf))
    facts = gather(folder, find_system(folder))
    assert (facts.epochs, facts.training) == (1, {"loss": 0.5, "acc": 0.75})
    assert facts.hours == {"de": 1.0, "fr": 0.5} and facts.errors == {("aware", "de"): 12.5}
    assert main(["export", str(folder), str(tmp_path / "out" / "mine")]) == 0
    again = gather(tmp_path / "out" / "mine", find_system(tmp_path / "out" / "mine"))
    assert vars(again) == vars(facts) | {"backbone": str(tmp_path / "out" / "mine" / "backbone")}


@pytest.mark.parametrize("size", [51865, 51866])
def test_the_stock_tokenizer_has_whispers_tokens(size):
    ours = WhisperTokens(size)
    stock = stock_tokenizer(ours)
    known = ["<|endoftext|>", "<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>", "<|30.00|>"]
    ids = [ours.end, ours.start, ours.language("de"), ours.transcribe, ours.no_timestamps, size - 1]
    assert stock.convert_tokens_to_ids(known) == ids and len(stock) == size
    for text in ("siebenundachtzig Kilometer", "四米 九十二克", "it's 100% naïve", "привет, мир", "ค่า"):
        ids = ours.encode(text, "zh")
        assert stock(text, add_special_tokens=False).input_ids == ids and stock.decode(ids) == text


def test_a_foreign_adapter_decodes_here_as_in_transformers(tmp_path, row):
    """Trained on stock transformers with peft: other targets and another rank than the experts beside it."""
    made = make_recipe(tmp_path)
    config = peft.LoraConfig(r=6, lora_alpha=9, target_modules=["q_proj", "fc1"], use_rslora=True, init_lora_weights=False)
    stock = peft.get_peft_model(tiny_whisper(), config).eval()
    stock.save_pretrained(made / "foreign")
    assert main(["add-expert", str(made / "foreign"), "--lang", "it", "--model", str(made / "exp" / "experts")]) == 0
    padded = np.pad(row, (0, 464_000))
    mel, _ = LogMel()(torch.from_numpy(padded)[None], torch.tensor([480_000]))
    ids = torch.tensor([WhisperTokens(51865).prompt("it")])
    with torch.no_grad():
        for _ in range(6):
            scores = stock(input_features=mel, decoder_input_ids=ids).logits[0, -1, :50258]
            ids = torch.cat([ids, scores.argmax()[None, None]], dim=1)
    assert said(made / "exp" / "experts", padded, "it")[:6] == ids[0, 4:].tolist()


def test_adapters_follow_the_rules_of_vllm(recipe):
    """What vLLM's loader asks of an adapter, see https://docs.vllm.ai/en/latest/features/lora.html and its PEFTHelper."""
    linears = {name for name, module in tiny_whisper().named_modules() if isinstance(module, torch.nn.Linear)}
    for folder in (recipe / "exp" / "experts" / "adapters").iterdir():
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["r"] <= 320 and config["bias"] == "none" and not config["use_dora"] and config["modules_to_save"] is None
        assert isinstance(config["lora_alpha"], int | float) and isinstance(config["target_modules"], list)
        with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
            for key in weights.keys():  # noqa: SIM118  # no dictionary
                name, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
                assert key.startswith("base_model.model.") and factor in ("A.weight", "B.weight") and name in linears
                assert name.rpartition(".")[2] in config["target_modules"]
                assert config["r"] in weights.get_slice(key).get_shape()


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """A student merged into the embedded backbone, near enough to it to know synthetic speech."""
    folder = tmp_path_factory.mktemp("merged")
    nano = "models/whisper-nano"
    bank = ExpertBank(load_backbone(nano).model, ["student"], ExpertConfig(rank=4, alpha=8.0))
    for layer in bank.layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.003)
    save_expert(bank, "student", folder / "student", nano)
    save_merged(load_backbone(nano).model, folder / "student", folder / "whisper", ("de", "fr", "zh"))
    return folder / "whisper"


@pytest.fixture(scope="module")
def spoken(merged) -> list[tuple[str, np.ndarray, str]]:
    """Languages, synthetic utterances with silence up to 30 s, and what the merged student hears in them."""
    s2t, rows = Speech2Text.from_pretrained(merged, device="cpu"), []
    for lang in ("de", "fr", "zh"):
        for said in utterances("atlas", "test", lang, split_texts("atlas", lang, {"test": 2})["test"], 1):
            padded = np.pad(said.speech.astype(np.float32), (0, 480_000 - len(said.speech)))
            rows.append((lang, padded, s2t(padded, lang)[0][0]))
    assert all(text for _, _, text in rows)
    return rows


@pytest.mark.slow
def test_the_pipeline_of_transformers_says_the_same(merged, spoken):
    stock = pipeline("automatic-speech-recognition", str(merged), dtype=torch.float32)
    for lang, padded, text in spoken:
        assert stock(padded, generate_kwargs={"language": lang, "num_beams": 1})["text"].strip() == text


@pytest.mark.slow
def test_faster_whisper_says_the_same(merged, spoken, tmp_path):
    pytest.importorskip("ctranslate2", reason="needs the extra formats: pip install 'espnet_lole[formats]'")
    faster = pytest.importorskip("faster_whisper", reason="needs the extra formats: pip install 'espnet_lole[formats]'")
    assert main(["export", str(merged), str(tmp_path / "ct2"), "--format", "ctranslate2"]) == 0
    theirs = faster.WhisperModel(str(tmp_path / "ct2"), device="cpu", compute_type="float32")
    for lang, padded, text in spoken:
        segments, _ = theirs.transcribe(
            padded, language=lang, beam_size=1, temperature=0.0, without_timestamps=True, max_new_tokens=100,
            suppress_tokens=[], suppress_blank=False, condition_on_previous_text=False,
        )  # fmt: skip
        assert "".join(s.text for s in segments).strip() == text

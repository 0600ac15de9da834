import pytest
import torch
from conftest import random_experts, tiny_whisper

from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import ExpertTranscriber
from espnet_lole.lole.adapters import load_bank, save_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.cache import ExpertCache
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

CODES = ("de", "en", "fr", "zh")


@pytest.fixture
def folder(tmp_path):
    for lang, rank in zip(CODES, (2, 4, 2, 3), strict=True):
        bank = random_experts(ExpertBank(tiny_whisper(), [lang], ExpertConfig(rank, alpha=3.0)), seed=rank)
        save_expert(bank, lang, tmp_path / lang, "tiny")
    return tmp_path


def test_an_expert_from_disk_is_the_expert_in_memory(folder, speech):
    """Whatever was in the places before, and with two of four experts in memory."""
    tokens, search = WhisperTokens(51865), SearchConfig(maxlenratio=0.2)
    rows = [row[:length] for row, length in zip(*speech, strict=True)]
    whole, cached = Backbone(tiny_whisper()).eval(), Backbone(tiny_whisper()).eval()
    every = ExpertTranscriber(whole, tokens, load_bank(whole.model, folder), search)
    some = ExpertTranscriber(cached, tokens, ExpertCache(cached.model, folder, 2), search)
    for langs in (["de", "en", "de", "en"], ["zh", "zh", "fr", "fr"], ["en", "zh", "en", "zh"], ["de", "de", "de", "de"]):
        for ours, theirs in zip(some(rows, langs), every(rows, langs), strict=True):
            assert ours.hypothesis.tokens == theirs.hypothesis.tokens
            assert ours.hypothesis.score == pytest.approx(theirs.hypothesis.score, abs=1e-5)
    assert some.num_parameters < every.num_parameters


def test_the_least_recently_used_goes(folder):
    cache = ExpertCache(tiny_whisper(), folder, 2)
    assert cache.languages == CODES
    de, en = cache.indices(["de", "en"])
    assert de != en and cache.indices(["de", "de"]) == [de, de] and cache.reads == 2
    assert cache.indices(["fr"]) == [en] and cache.reads == 3
    assert cache.indices(["de"]) == [de] and cache.reads == 3
    assert cache.indices(["en", "de"]) == [en, de] and cache.reads == 4


def test_a_batch_never_loses_an_expert_of_its_own(folder):
    """The one in memory is the least recently used, and the other one of the batch has to be read."""
    cache = ExpertCache(tiny_whisper(), folder, 2)
    cache.indices(["de"])
    cache.indices(["en"])
    zh, de = cache.indices(["zh", "de"])
    assert zh != de and cache.indices(["de", "zh"]) == [de, zh] and cache.reads == 3


def test_mistakes_are_refused(folder, tmp_path):
    cache = ExpertCache(tiny_whisper(), folder, 2)
    with pytest.raises(ValueError, match="expected a language with an expert, got 'tr': there are de en fr zh"):
        cache.indices(["tr"])
    with pytest.raises(ValueError, match="expected at most 2 languages in a batch, .* got 3"):
        cache.indices(["de", "en", "fr"])
    with pytest.raises(ValueError, match="expected a capacity of 1 expert or more, got 0"):
        ExpertCache(tiny_whisper(), folder, 0)
    with pytest.raises(FileNotFoundError, match="expected adapters"):
        ExpertCache(tiny_whisper(), tmp_path / "none", 1)


def test_a_failed_read_leaves_the_others_in_their_places(folder):
    cache = ExpertCache(tiny_whisper(), folder, 2)
    de, en = cache.indices(["de", "en"])
    (folder / "fr" / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected a peft adapter"):
        cache.indices(["fr"])
    assert cache.indices(["de", "en"]) == [de, en] and cache.reads == 2


def test_experts_keep_their_factors(folder):
    model = tiny_whisper()
    cache = ExpertCache(model, folder, 1)
    whole = load_bank(tiny_whisper(), folder)
    for lang in ("zh", "en"):
        (place,) = cache.indices([lang])
        layer = model.get_submodule("model.encoder.layers.1.fc1")
        theirs = whole.layers["model.encoder.layers.1.fc1"]
        update = layer.scale * layer.lora_B[place] @ layer.lora_A[place]
        torch.testing.assert_close(update, theirs.scale * theirs.lora_B[whole.index(lang)] @ theirs.lora_A[whole.index(lang)])

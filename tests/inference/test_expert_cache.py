import shutil

import pytest
import torch
from conftest import random_experts, tiny_whisper

from espnet_lole.inference.expert_cache import ExpertCache
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import ExpertTranscriber
from espnet_lole.lole.adapters import load_adapters, save_adapter
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

CODES = ("de", "en", "fr", "zh")


def make_whisper(**size) -> Whisper:
    return Whisper(tiny_whisper(**size)).eval()


@pytest.fixture
def folder(tmp_path):
    for lang, rank in zip(CODES, (2, 4, 2, 3), strict=True):
        experts = random_experts((lang,), rank, alpha=3.0, seed=rank)
        save_adapter(experts, lang, tmp_path / lang, "tiny")
    return tmp_path


def test_an_expert_from_disk_is_the_expert_in_memory(folder, speech):
    """Whatever the slots held before, with two of four experts in memory."""
    tokenizer, search = WhisperTokenizer(51865), SearchConfig(maxlenratio=0.2)
    every = ExpertTranscriber(load_adapters(make_whisper(), folder, CODES), tokenizer, search)
    some = ExpertTranscriber(ExpertCache(make_whisper(), folder, 2), tokenizer, search)
    for langs in (
        ["de", "en", "de", "en"],
        ["zh", "zh", "fr", "fr"],
        ["en", "zh", "en", "zh"],
        ["de", "de", "de", "de"],
    ):
        for cached, expected in zip(some(*speech, langs), every(*speech, langs), strict=True):
            assert cached.tokens == expected.tokens
            assert cached.score == pytest.approx(expected.score, abs=1e-5)
    assert some.num_parameters < every.num_parameters


def test_pickled_adapters_are_not_listed_without_a_word(folder):
    (folder / "fr" / "adapter_model.safetensors").rename(folder / "fr" / "adapter_model.bin")
    with pytest.raises(
        FileNotFoundError, match="in .*fr, which is not there: `lole add-expert` reads adapter_model.bin"
    ):
        ExpertCache(make_whisper(), folder, 2)


def test_the_least_recently_used_expert_is_replaced(folder):
    cache = ExpertCache(make_whisper(), folder, 2)
    assert cache.languages == CODES
    de, en = cache.indices(["de", "en"])
    assert de != en and cache.indices(["de", "de"]) == [de, de] and cache.reads == 2
    assert cache.indices(["fr"]) == [en] and cache.reads == 3
    assert cache.indices(["de"]) == [de] and cache.reads == 3
    assert cache.indices(["en", "de"]) == [en, de] and cache.reads == 4


def test_a_batch_never_replaces_an_expert_that_it_needs(folder):
    """Even if that is the least recently used one, and another one of the batch has to be read."""
    cache = ExpertCache(make_whisper(), folder, 2)
    cache.indices(["de"])
    cache.indices(["en"])
    zh, de = cache.indices(["zh", "de"])
    assert zh != de and cache.indices(["de", "zh"]) == [de, zh] and cache.reads == 3


def test_mistakes_are_refused(folder, tmp_path):
    cache = ExpertCache(make_whisper(), folder, 2)
    with pytest.raises(ValueError, match="there is no expert for 'tr'; there are experts for de en fr zh"):
        cache.indices(["tr"])
    with pytest.raises(ValueError, match="a batch has 3 languages, but only 2 experts may be in memory"):
        cache.indices(["de", "en", "fr"])
    with pytest.raises(ValueError, match="the capacity must be 1 expert or more, got 0"):
        ExpertCache(make_whisper(), folder, 0)
    with pytest.raises(FileNotFoundError, match="expected adapters"):
        ExpertCache(make_whisper(), tmp_path / "none", 1)


def test_a_failed_read_leaves_the_others_in_their_slots(folder):
    cache = ExpertCache(make_whisper(), folder, 2)
    de, en = cache.indices(["de", "en"])
    (folder / "fr" / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected a peft adapter"):
        cache.indices(["fr"])
    assert cache.indices(["de", "en"]) == [de, en] and cache.reads == 2
    shutil.rmtree(folder / "fr")
    other = LoRAExperts(make_whisper(width=32), ["fr"], ExpertConfig(rank=2))
    save_adapter(other, "fr", folder / "fr", "tiny")
    with pytest.raises(ValueError, match="made for another backbone"):
        cache.indices(["fr"])
    assert cache.indices(["de", "en"]) == [de, en] and cache.reads == 2


def test_experts_keep_their_factors(folder):
    cache, name = ExpertCache(make_whisper(), folder, 1), "model.encoder.layers.1.fc1"
    expected = load_adapters(make_whisper(), folder, CODES).layers[name]
    for lang in ("zh", "en"):
        assert cache.indices([lang]) == [0]
        layer = cache.whisper.model.get_submodule(name)
        update = layer.scale * layer.lora_B["slot0"] @ layer.lora_A["slot0"]
        torch.testing.assert_close(update, expected.scale * expected.lora_B[lang] @ expected.lora_A[lang])

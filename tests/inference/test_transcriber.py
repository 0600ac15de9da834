import math
from dataclasses import replace

import pytest
import torch
from conftest import random_experts, tiny_whisper

from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import ExpertTranscriber, MoLETranscriber, Transcription, pad_speech
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.lole.mole import MoLE
from espnet_lole.lole.routing import RoutingConfig
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

LANGS = ("de", "en", "fr", "es", "it", "ru", "tr", "zh")
SEARCH = SearchConfig(beam_size=2, maxlenratio=0.2)


def make(shared_layers: int, search: SearchConfig = SEARCH, **routing) -> MoLETranscriber:
    backbone = Backbone(tiny_whisper()).eval().requires_grad_(False)
    bank = random_experts(ExpertBank(backbone.model, LANGS, ExpertConfig(rank=4, alpha=8.0)))
    torch.manual_seed(0)
    mole = MoLE(backbone, bank, FusionConfig(shared_layers), ClassifierConfig(hidden=8))
    mole.classifier.eval()
    torch.nn.init.normal_(mole.classifier.mlp[-1].weight)
    return MoLETranscriber(mole, WhisperTokens(51865), search, RoutingConfig(**routing))


def eight(speech) -> list[torch.Tensor]:
    rows = [row[:length] for row, length in zip(*speech, strict=True)]
    return rows + [row.flip(0) for row in rows]


def spread(mole: MoLETranscriber, rows: list[torch.Tensor]) -> None:
    """Let the classifier find different languages in utterances that sound alike."""
    with torch.no_grad():
        scores = mole.mole.classifier(mole.mole.shallow(*pad_speech(rows, mole.mole.backbone)))
        mole.mole.classifier.mlp[-1].bias -= scores.mean(0)


def test_given_languages_without_shared_layers_are_the_experts(speech):
    mole, rows = make(0), eight(speech)
    experts = ExpertTranscriber(mole.mole.backbone, mole.tokens, mole.mole.bank, SEARCH)
    for ours, theirs in zip(mole(rows, LANGS), experts(rows, LANGS), strict=True):
        assert ours.hypothesis.tokens == theirs.hypothesis.tokens and ours.lang == theirs.lang
        assert 0 <= ours.confidence <= 1 and theirs.confidence is None


def test_found_language_decodes_as_if_it_were_given(speech):
    mole, rows = make(2), eight(speech)
    spread(mole, rows)
    found = mole(rows, None)
    assert len({t.lang for t in found}) > 1
    assert mole(rows, [t.lang for t in found]) == found
    for row, together in zip(rows, found, strict=True):
        (alone,) = mole([row], None)
        assert (alone.hypothesis.tokens, alone.lang) == (together.hypothesis.tokens, together.lang)


def test_one_encoder_pass_and_one_search_for_eight_languages(speech, monkeypatch):
    mole = make(2)
    calls = {"encoder": 0, "search": 0}
    backbone, bank = mole.mole.backbone, mole.mole.bank

    def count(*_):
        calls["encoder"] += 1

    for layer in backbone.encoder.layers:
        layer.register_forward_pre_hook(count)
    import espnet_lole.inference.transcriber as module

    whole = module.search

    def counted(*args):
        calls["search"] += 1
        return whole(*args)

    monkeypatch.setattr(module, "search", counted)
    mole(eight(speech), bank.languages)
    assert calls == {"encoder": len(backbone.encoder.layers), "search": 1}
    mole(eight(speech), None)
    assert calls == {"encoder": 2 * len(backbone.encoder.layers), "search": 2}


def test_sharp_mixture_is_the_argmax(speech):
    mole, rows = make(1), eight(speech)
    mole.mole.classifier.mlp[-1].weight.data *= 1e4
    spread(mole, rows)
    argmax = mole(rows, None)
    mole.routing = RoutingConfig(experts=0)
    mixed = mole(rows, None)
    sure = [i for i, t in enumerate(argmax) if t.confidence > 1 - 1e-6]
    assert sure
    assert [mixed[i].hypothesis.tokens for i in sure] == [argmax[i].hypothesis.tokens for i in sure]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("loop_tokens", [0, 3])
def test_candidates_keep_the_language_of_best_score_and_posterior(speech, weight, loop_tokens):
    search = replace(SEARCH, loop_tokens=loop_tokens)
    mole, rows = make(2, search, candidates=8, threshold=1.0, posterior_weight=weight), eight(speech)
    spread(mole, rows)
    by_language = {lang: mole(rows, [lang] * 8) for lang in LANGS}

    def rank(said: Transcription) -> tuple[bool, float]:
        return not said.hypothesis.looped, said.hypothesis.score + weight * math.log(said.confidence)

    for i, found in enumerate(mole(rows, None)):
        best = max((said[i] for said in by_language.values()), key=rank)
        assert found.hypothesis.tokens == best.hypothesis.tokens and found.lang == best.lang
    looped = {said.hypothesis.looped for all_said in by_language.values() for said in all_said}
    assert looped == ({True, False} if loop_tokens else {False})


def test_who_needs_languages_says_so(speech):
    mole = make(2)
    with pytest.raises(ValueError, match="expected the language of each utterance"):
        ExpertTranscriber(mole.mole.backbone, mole.tokens, mole.mole.bank, SEARCH)(eight(speech), None)

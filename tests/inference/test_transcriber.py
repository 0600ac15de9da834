import math
from dataclasses import replace

import pytest
import torch
from conftest import random_experts, run_frontend, tiny_whisper

from espnet_lole.inference import transcriber as transcriber_module
from espnet_lole.inference.results import Hypothesis
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import ExpertTranscriber, MoLETranscriber, PromptTranscriber
from espnet_lole.lole.language_classifier import ClassifierConfig
from espnet_lole.lole.mole import FusionConfig, MoLE, RoutingConfig
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

LANGS = ("de", "en", "fr", "es", "it", "ru", "tr", "zh")
SEARCH = SearchConfig(beam_size=2, maxlenratio=0.2)
TOKENIZER = WhisperTokenizer(51865)


def make_mole(shared_layers: int, search: SearchConfig = SEARCH, **routing) -> MoLETranscriber:
    experts = random_experts(LANGS)
    torch.manual_seed(0)
    mole = MoLE(experts, FusionConfig(shared_layers), ClassifierConfig(hidden=8)).eval()
    torch.nn.init.normal_(mole.frontend.classifier.mlp[-1].weight)
    return MoLETranscriber(mole, TOKENIZER, search, RoutingConfig(**routing))


@pytest.fixture
def batch(speech) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight utterances: those of ``speech``, and each of them reversed."""
    noise, lengths = speech
    backwards = torch.zeros_like(noise)
    for row, length in enumerate(lengths):
        backwards[row, :length] = noise[row, :length].flip(0)
    return torch.cat([noise, backwards]), lengths.repeat(2)


@torch.no_grad()
def spread(transcriber: MoLETranscriber, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Shift the classifier's bias so that similar utterances get different languages."""
    _, logits = run_frontend(transcriber.mole, batch)
    transcriber.mole.frontend.classifier.mlp[-1].bias -= logits.mean(0)


def test_mole_without_shared_layers_is_the_experts_when_the_language_is_given(batch):
    mole = make_mole(0)
    experts = ExpertTranscriber(mole.experts, TOKENIZER, SEARCH)
    for ours, expected in zip(mole(*batch, LANGS), experts(*batch, LANGS), strict=True):
        assert ours.tokens == expected.tokens and ours.language == expected.language
        assert ours.score == pytest.approx(expected.score, abs=1e-4)
        assert 0 <= ours.confidence <= 1 and expected.confidence is None


def test_a_second_pass_decodes_as_the_experts_of_the_languages_that_the_first_finds(batch):
    once, again = make_mole(2), make_mole(2, second_pass=True)
    spread(once, batch)
    spread(again, batch)
    found, hypotheses = [h.posteriors for h in once(*batch, None)], again(*batch, None)
    assert [h.posteriors for h in hypotheses] == [pytest.approx(posteriors) for posteriors in found]
    languages = [h.language for h in hypotheses]
    assert len(set(languages)) > 1
    experts = ExpertTranscriber(random_experts(LANGS), TOKENIZER, SEARCH)(*batch, languages)
    assert [(h.tokens, h.language) for h in hypotheses] == [(h.tokens, h.language) for h in experts]
    assert again(*batch, languages) == experts
    assert all(h.score != pytest.approx(e.score) for h, e in zip(once(*batch, languages), experts, strict=True))


def test_experts_return_hypotheses_in_the_order_of_the_utterances(batch):
    experts = ExpertTranscriber(make_mole(0).experts, TOKENIZER, SEARCH)
    languages = ["zh", "de", "tr", "de", "zh", "en", "tr", "en"]
    for row, (together, lang) in enumerate(zip(experts(*batch, languages), languages, strict=True)):
        length = int(batch[1][row])
        (alone,) = experts(batch[0][row : row + 1, :length], batch[1][row : row + 1], [lang])
        assert (alone.tokens, alone.language) == (together.tokens, lang)
        assert alone.score == pytest.approx(together.score, abs=1e-4)


def test_a_predicted_language_decodes_as_if_it_were_given(batch):
    mole = make_mole(2)
    spread(mole, batch)
    hypotheses = mole(*batch, None)
    assert len({h.language for h in hypotheses}) > 1
    assert mole(*batch, [h.language for h in hypotheses]) == hypotheses
    for row, together in enumerate(hypotheses):
        length = int(batch[1][row])
        (alone,) = mole(batch[0][row : row + 1, :length], batch[1][row : row + 1], None)
        assert (alone.tokens, alone.language) == (together.tokens, together.language)
        assert alone.score == pytest.approx(together.score, abs=1e-4)


def test_one_encoder_pass_and_one_search_serve_eight_languages(batch, monkeypatch):
    mole, calls = make_mole(2), {"encoder": 0, "search": 0}

    def count_layer(*_):
        calls["encoder"] += 1

    def counted_search(*args, search=transcriber_module.search):
        calls["search"] += 1
        return search(*args)

    for layer in mole.whisper.encoder.layers:
        layer.register_forward_pre_hook(count_layer)
    monkeypatch.setattr(transcriber_module, "search", counted_search)
    mole(*batch, LANGS)
    assert calls == {"encoder": len(mole.whisper.encoder.layers), "search": 1}
    mole(*batch, None)
    assert calls == {"encoder": 2 * len(mole.whisper.encoder.layers), "search": 2}


@pytest.mark.parametrize("weight", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("loop_tokens", [0, 3])
def test_candidates_end_in_the_language_of_best_score_and_posterior(batch, weight, loop_tokens):
    search = replace(SEARCH, loop_tokens=loop_tokens)
    mole = make_mole(2, search, candidates=8, threshold=1.0, posterior_weight=weight)
    spread(mole, batch)
    by_language = {lang: mole(*batch, [lang] * 8) for lang in LANGS}

    def rank(hypothesis: Hypothesis) -> tuple[bool, float]:
        return not hypothesis.looped, hypothesis.score + weight * math.log(hypothesis.confidence)

    for i, hypothesis in enumerate(mole(*batch, None)):
        best = max((hypotheses[i] for hypotheses in by_language.values()), key=rank)
        assert hypothesis.tokens == best.tokens and hypothesis.language == best.language
    looped = {h.looped for hypotheses in by_language.values() for h in hypotheses}
    assert looped == ({True, False} if loop_tokens else {False})


def test_a_student_is_its_adapter_alone_with_the_prompt_of_the_likeliest_language(batch):
    student = random_experts(("student",))
    prompted = PromptTranscriber(student.whisper, TOKENIZER, student, LANGS, SEARCH)
    hypotheses = prompted(*batch, None)
    assert all(h.language == max(h.posteriors, key=h.posteriors.get) for h in hypotheses)
    assert [h.tokens for h in prompted(*batch, [h.language for h in hypotheses])] == [h.tokens for h in hypotheses]
    bare = PromptTranscriber(Whisper(tiny_whisper()).eval(), TOKENIZER, None, LANGS, SEARCH)
    for without, with_adapter in zip(bare(*batch, None), hypotheses, strict=True):
        assert without.posteriors != pytest.approx(with_adapter.posteriors, abs=1e-3)
        assert without.score != pytest.approx(with_adapter.score, abs=1e-3)


@pytest.mark.parametrize("fill", [None, "silence"])
def test_experts_of_an_unknown_language_are_those_that_the_whisper_below_them_finds(batch, fill):
    experts = ExpertTranscriber(random_experts(LANGS), TOKENIZER, SEARCH, fill)
    below = PromptTranscriber(Whisper(tiny_whisper(), "30s" if fill else "none").eval(), TOKENIZER, None, LANGS, SEARCH)
    found, hypotheses = below(*batch, None), experts(*batch, None)
    assert [h.posteriors for h in hypotheses] == [pytest.approx(h.posteriors, rel=1e-4) for h in found]
    languages = [h.language for h in found]
    given = experts(*batch, languages)
    assert [(h.language, h.tokens) for h in hypotheses] == [(h.language, h.tokens) for h in given]
    assert given[0].posteriors is None


def test_experts_find_languages_on_30s_in_no_more_memory_than_the_batch_takes(monkeypatch):
    experts, samples = ExpertTranscriber(random_experts(LANGS), TOKENIZER, SEARCH, "silence"), []
    embed = experts.whisper.embed_speech
    monkeypatch.setattr(
        experts.whisper, "embed_speech", lambda x, n, fill=None: samples.append((len(x), fill)) or embed(x, n, fill)
    )
    speech = torch.randn(9, 160_000, generator=torch.Generator().manual_seed(0)) * 0.1
    assert len(experts(speech, torch.full((9,), 160_000), None)) == 9
    assert samples == [(3, "silence")] * 3 + [(9, None)]


def test_a_whisper_without_languages_to_choose_from_finds_none(batch):
    with pytest.raises(ValueError, match="expected languages to choose from, got none"):
        PromptTranscriber(Whisper(tiny_whisper()).eval(), TOKENIZER, None, (), SEARCH)(*batch, None)

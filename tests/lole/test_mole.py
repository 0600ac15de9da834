"""The fusion against peft's merged adapters and against single experts; routing."""

import pytest
import torch
from conftest import random_experts, run_frontend, tiny_whisper
from peft import LoraConfig, get_peft_model

from espnet_lole.lole.language_classifier import ClassifierConfig
from espnet_lole.lole.mole import FORMS, FusionConfig, MoLE, RoutingConfig, route, route_given
from espnet_lole.whisper.model import Whisper

LANGS = ("de", "en", "zh")
POSTERIORS = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.0, 0.95], [0.25, 0.4, 0.35]])


def make_mole(shared_layers=2, langs=LANGS, seed=0, **fusion) -> MoLE:
    """Return a MoLE on random experts, with a random classifier."""
    torch.manual_seed(seed)
    experts = random_experts(langs)
    return MoLE(experts, FusionConfig(shared_layers, **fusion), ClassifierConfig(hidden=8)).eval()


def randomize(mole: MoLE) -> MoLE:
    """Draw the fusion logits."""
    for layer in mole.frontend.fused.values():
        torch.nn.init.normal_(layer.logits)
    return mole


@torch.no_grad()
def encode(mole: MoLE, speech, expert: int) -> torch.Tensor:
    shallow, _ = run_frontend(mole, speech)
    with mole.experts.activate([expert] * 4):
        return mole.encode_deep(shallow).states


@torch.no_grad()
def encode_with_experts(speech, expert: int) -> torch.Tensor:
    experts = random_experts(LANGS)
    with experts.activate([expert] * 4):
        return experts.whisper.encode(*speech).states


@pytest.mark.parametrize("form", FORMS)
def test_one_hot_weights_are_that_expert(form, speech):
    mole = make_mole(form=form, normalize="none")
    for layer in mole.frontend.fused.values():
        layer.logits.data = torch.tensor([0.0, 1.0, 0.0]).expand_as(layer.logits).clone()
    torch.testing.assert_close(encode(mole, speech, 1), encode_with_experts(speech, 1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(encode(mole, speech, 2), encode_with_experts(speech, 2), atol=1e-2)


def test_without_shared_layers_it_is_the_experts(speech):
    assert torch.equal(encode(make_mole(shared_layers=0), speech, 2), encode_with_experts(speech, 2))


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_zero_are_the_backbone(form, whisper, speech):
    mole = make_mole(shared_layers=3, form=form, normalize="none")
    for layer in mole.frontend.fused.values():
        torch.nn.init.zeros_(layer.logits)
    with torch.no_grad():
        torch.testing.assert_close(encode(mole, speech, 0), whisper.encode(*speech).states, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("form", "combination", "weight"), [("factors", "linear", 1 / 9), ("delta", "cat", 1 / 3)])
@pytest.mark.parametrize("normalize", ["softmax", "none"])
def test_a_new_fusion_is_a_uniformly_weighted_adapter_of_peft(form, combination, weight, normalize):
    """``linear`` puts the root of a weight on each factor: 1/3 on A and on B is a weight of 1/9 there."""
    mole = make_mole(form=form, normalize=normalize)
    config = LoraConfig(r=4, lora_alpha=8.0, target_modules=list(mole.experts.config.targets), init_lora_weights=False)
    model = get_peft_model(tiny_whisper(), config, adapter_name="de")
    for lang in LANGS[1:]:
        model.add_adapter(lang, config)
    fused = mole.frontend.fused
    assert len(fused) == 2 * 6
    for name, layer in fused.items():
        oracle = model.base_model.model.get_submodule(name)
        for lang in LANGS:
            oracle.lora_A[lang].weight.data = layer.experts.lora_A[lang].detach().clone()
            oracle.lora_B[lang].weight.data = layer.experts.lora_B[lang].detach().clone()
    model.add_weighted_adapter(list(LANGS), [weight] * 3, "fused", combination_type=combination)
    for name, layer in fused.items():
        delta = model.base_model.model.get_submodule(name).get_delta_weight("fused")
        torch.testing.assert_close(layer.merge().weight - layer.experts.base.weight, delta, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_fusion_are_those_of_finite_differences(form):
    layer = randomize(make_mole(form=form)).double().frontend.fused["model.encoder.layers.1.fc1"]
    x = torch.randn(2, 3, 16, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: layer(x), (x, layer.logits))


@pytest.mark.parametrize("form", FORMS)
def test_merged_equals_unmerged_and_leaves_plain_linears(form, speech):
    mole = randomize(make_mole(form=form))
    before = encode(mole, speech, 1)
    assert mole.merge() is mole
    torch.testing.assert_close(encode(mole, speech, 1), before, atol=1e-5, rtol=1e-4)
    assert type(mole.experts.whisper.encoder.layers[1].fc1) is torch.nn.Linear and not mole.frontend.fused
    assert all(".layers.2." in name or ".decoder." in name for name in mole.experts.layers)


def test_gradients_reach_fusion_and_classifier_alone(speech):
    mole = make_mole()
    shallow, logits = run_frontend(mole, speech)
    with mole.experts.activate([0, 1, 2, 0]):
        (mole.encode_deep(shallow).states.square().sum() + logits.square().sum()).backward()
    with_gradient = {id(p) for p in mole.parameters() if p.grad is not None and p.grad.any()}
    trained = [*mole.frontend.classifier.parameters(), *(layer.logits for layer in mole.frontend.fused.values())]
    assert with_gradient == set(map(id, trained)) == {id(p) for p in mole.parameters() if p.requires_grad}


def test_shared_layers_do_not_depend_on_the_selection(speech):
    mole = randomize(make_mole())
    with torch.no_grad(), mole.experts.activate([0, 1, 2, 0]):
        inside = run_frontend(mole, speech)
    outside = run_frontend(mole, speech)
    assert torch.equal(inside[0].states, outside[0].states) and torch.equal(inside[1], outside[1])
    assert inside[1].shape == (4, 3)


def test_given_languages_are_followed_those_of_one_language_together():
    decision = route_given(torch.tensor([2, 0, 1, 0]))
    assert decision.language.tolist() == [0, 0, 1, 2] and decision.rows.tolist() == [1, 3, 2, 0]


def test_the_most_likely_language_is_the_default():
    decision = route(POSTERIORS, RoutingConfig())
    assert decision.rows.tolist() == [0, 2, 1] and decision.language.tolist() == [0, 1, 2]


def test_only_uncertain_utterances_get_candidates():
    decision = route(POSTERIORS, RoutingConfig(candidates=2, threshold=0.9))
    assert decision.rows.tolist() == [0, 0, 2, 1, 2] and decision.language.tolist() == [0, 1, 1, 2, 2]
    everything = route(POSTERIORS, RoutingConfig(candidates=9, threshold=1.0))
    assert sorted(zip(everything.rows.tolist(), everything.language.tolist(), strict=True)) == [
        (row, lang) for row in range(3) for lang in range(3)
    ]


def test_hypotheses_are_sorted_by_language_and_then_by_utterance():
    """Equal posteriors too, which are ranked as torch sorts them."""
    generator = torch.Generator().manual_seed(0)
    posteriors = torch.randint(1, 4, (50, 6), generator=generator).float()
    for candidates in (1, 2, 6):
        decision = route(posteriors, RoutingConfig(candidates, threshold=1.0 if candidates == 6 else 3.0 / 4))
        order = (decision.language * len(posteriors) + decision.rows).tolist()
        assert order == sorted(set(order)) and set(decision.rows.tolist()) == set(range(50))


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="expected shared_layers from 0 to the encoder's 3 layers, got 4"):
        make_mole(shared_layers=4)
    with pytest.raises(ValueError, match="expected form of fusion_conf to be one of .*'average'"):
        FusionConfig(2, form="average")
    with pytest.raises(ValueError, match="expected normalize of fusion_conf to be one of .*'free'"):
        FusionConfig(2, normalize="free")
    for wrong in ({"candidates": 0}, {"threshold": 2.0}, {"posterior_weight": -1.0}):
        with pytest.raises(ValueError, match="expected posterior_weight >= 0"):
            RoutingConfig(**wrong)


def test_low_precision_stays_near_float32(speech):
    states = []
    for precision in (torch.float32, torch.bfloat16):
        experts = random_experts(LANGS, whisper=Whisper(tiny_whisper(), precision=precision).eval())
        torch.manual_seed(0)
        states.append(
            encode(randomize(MoLE(experts, FusionConfig(2), ClassifierConfig(hidden=8)).eval()), speech, 1).float()
        )
    assert 0 < (states[0] - states[1]).norm() < 0.05 * states[0].norm()

"""The fusion against peft's merged adapters and against single experts; routing; MoLE's file."""

import pytest
import torch
from conftest import random_experts, tiny_whisper
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from espnet_lole.lole.language_classifier import ClassifierConfig
from espnet_lole.lole.mole import FORMS, FusionConfig, MoLE, RoutingConfig, read_trained, route, route_given
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
    encoded, _ = mole.frontend(*speech)
    with mole.experts.activate([expert] * 4):
        return mole.deep(encoded).states


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
        torch.testing.assert_close(layer.merged().weight - layer.experts.base.weight, delta, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_fusion_are_those_of_finite_differences(form):
    layer = randomize(make_mole(form=form)).double().frontend.fused["model.encoder.layers.1.fc1"]
    x = torch.randn(2, 3, 16, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: layer(x), (x, layer.logits))


@pytest.mark.parametrize("form", FORMS)
def test_merged_equals_unmerged_and_leaves_plain_linears(form, speech):
    mole = randomize(make_mole(form=form))
    before = encode(mole, speech, 1)
    assert mole.merge_and_unload() is mole
    torch.testing.assert_close(encode(mole, speech, 1), before, atol=1e-5, rtol=1e-4)
    assert type(mole.experts.whisper.encoder.layers[1].fc1) is torch.nn.Linear and not mole.frontend.fused
    assert all(".layers.2." in name or ".decoder." in name for name in mole.experts.layers)


def test_gradients_reach_fusion_and_classifier_alone(speech):
    mole = make_mole()
    encoded, logits = mole.frontend(*speech)
    with mole.experts.activate([0, 1, 2, 0]):
        (mole.deep(encoded).states.square().sum() + logits.square().sum()).backward()
    with_gradient = {id(p) for p in mole.parameters() if p.grad is not None and p.grad.any()}
    trained = [*mole.frontend.classifier.parameters(), *(layer.logits for layer in mole.frontend.fused.values())]
    assert with_gradient == set(map(id, trained)) == {id(p) for p in mole.parameters() if p.requires_grad}


def test_shared_layers_do_not_depend_on_the_selection(speech):
    mole = randomize(make_mole())
    with torch.no_grad(), mole.experts.activate([0, 1, 2, 0]):
        inside = mole.frontend(*speech)
    outside = mole.frontend(*speech)
    assert torch.equal(inside[0].states, outside[0].states) and torch.equal(inside[1], outside[1])
    assert inside[1].shape == (4, 3)


def test_a_file_makes_another_mole_equal(tmp_path, speech):
    mole, other = randomize(make_mole(seed=1)), make_mole(seed=2)
    mole.save_trained(tmp_path / "mole.safetensors")
    state, fingerprints = read_trained(tmp_path / "mole.safetensors")
    assert fingerprints == mole.fingerprints == other.fingerprints and len(set(fingerprints.values())) == 2
    other.load_trained(state, "the file")
    assert torch.equal(encode(mole, speech, 1), encode(other, speech, 1))
    assert torch.equal(mole.frontend(*speech)[1], other.frontend(*speech)[1])


def test_an_older_file_is_read(tmp_path):
    """It has the fingerprints as tensors, and another name of the logits."""
    mole = make_mole()
    state = mole.trained_state()
    prints = {f"{part}_fingerprint": torch.tensor(n, dtype=torch.float64) for part, n in mole.fingerprints.items()}
    older = state | prints
    older["fusion.raw"] = older.pop("fusion.logits")
    save_file(older, tmp_path / "mole.safetensors")
    read, fingerprints = read_trained(tmp_path / "mole.safetensors")
    assert fingerprints == mole.fingerprints and read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_another_shape_or_a_damaged_file_is_refused(tmp_path):
    file = tmp_path / "mole.safetensors"
    make_mole().save_trained(file)
    state, _ = read_trained(file)
    with pytest.raises(
        ValueError, match=r"here is no MoLE of the languages de en in this shape: classifier\.mlp\.4\.bias is "
    ):
        make_mole(langs=("de", "en")).load_trained(state, "here")
    with pytest.raises(
        ValueError, match=r"fusion\.logits is torch.Size\(\[12, 2, 3\]\) instead of torch.Size\(\[18, 2, 3\]\)"
    ):
        make_mole(shared_layers=3).load_trained(state, "here")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="mole.safetensors is damaged"):
        read_trained(file)


def test_a_language_is_added_to_a_mole(tmp_path, speech):
    """What the others had stays; the new one's fusion starts as their mean, its classifier row as it is drawn."""
    old = randomize(make_mole(langs=("zh", "de", "en")))
    old.save_trained(tmp_path / "mole.safetensors")
    state = load_file(tmp_path / "mole.safetensors")
    new = make_mole(langs=("de", "en", "fr", "zh"), seed=1)
    drawn = new.frontend.classifier.mlp[4].bias[2].clone()
    new.extend_from(state, ["zh", "de", "en"])
    fusion = new.trained_state()["fusion.logits"]
    assert torch.equal(fusion[..., [3, 0, 1]], state["fusion.logits"])
    torch.testing.assert_close(fusion[..., 2], state["fusion.logits"].mean(-1))
    classifier = new.frontend.classifier
    assert (
        torch.equal(classifier.mlp[4].bias[[3, 0, 1]], state["classifier.mlp.4.bias"])
        and classifier.mlp[4].bias[2] == drawn
    )
    assert torch.equal(classifier.mlp[1].weight, state["classifier.mlp.1.weight"])
    assert new.frontend(*speech)[1].shape == (4, 4)
    with pytest.raises(ValueError, match="of the languages de en fr zh, got one of \\['tr'\\] too"):
        new.extend_from(state, ["zh", "de", "tr"])
    with pytest.raises(ValueError, match="the MoLE to start from is no MoLE of the languages"):
        make_mole(3, langs=("de", "en", "fr", "zh")).extend_from(state, ["zh", "de", "en"])


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

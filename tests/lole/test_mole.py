import pytest
import torch
from conftest import random_experts, tiny_whisper
from peft import LoraConfig, get_peft_model

from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.fusion import FORMS, FusionConfig
from espnet_lole.lole.mole import MoLE
from espnet_lole.whisper.model import Backbone

LANGS = ("de", "en", "zh")


def make_mole(shared_layers=2, **fusion) -> MoLE:
    backbone = Backbone(tiny_whisper()).eval().requires_grad_(False)
    bank = random_experts(ExpertBank(backbone.model, LANGS, ExpertConfig(rank=4, alpha=8.0)))
    return MoLE(backbone, bank, FusionConfig(shared_layers, **fusion), ClassifierConfig(hidden=8))


def encode(mole: MoLE, speech, expert: int) -> torch.Tensor:
    with torch.no_grad(), mole.bank.routed(torch.full((4,), expert)):
        return mole.deep(mole.shallow(*speech)).states


def experts_alone(speech, expert: int) -> torch.Tensor:
    mole = make_mole(shared_layers=0)
    with torch.no_grad(), mole.bank.routed(torch.full((4,), expert)):
        return mole.backbone.encode(*speech).states


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weights", ["module", "layer", "global"])
def test_one_hot_weights_are_that_expert(form, weights, speech):
    mole = make_mole(form=form, weights=weights, normalise="free")
    torch.nn.init.zeros_(mole.fusion.raw)
    mole.fusion.raw.data[..., 1] = 1.0
    torch.testing.assert_close(encode(mole, speech, 1), experts_alone(speech, 1), atol=1e-5, rtol=1e-4)


def test_without_shared_layers_it_is_the_experts(speech):
    assert torch.equal(encode(make_mole(shared_layers=0), speech, 2), experts_alone(speech, 2))


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_are_nothing_are_the_backbone(form, speech):
    mole = make_mole(shared_layers=3, form=form, normalise="free")
    torch.nn.init.zeros_(mole.fusion.raw)
    with torch.no_grad():
        plain = Backbone(tiny_whisper()).eval().encode(*speech).states
    torch.testing.assert_close(encode(mole, speech, 0), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("form", "combination", "weight"), [("factors", "linear", 1 / 9), ("delta", "cat", 1 / 3)])
def test_uniform_fusion_is_a_weighted_adapter_of_peft(form, combination, weight):
    """``linear`` puts the root of a weight on each factor: 1/3 on A and on B is a weight of 1/9 there."""
    mole = make_mole(form=form)
    stock = tiny_whisper()
    config = LoraConfig(r=4, lora_alpha=8.0, target_modules=list(mole.bank.config.targets), init_lora_weights=False)
    model = get_peft_model(stock, config, adapter_name="de")
    for lang in LANGS[1:]:
        model.add_adapter(lang, config)
    for name, layer in mole.bank.layers.items():
        theirs = model.base_model.model.get_submodule(name)
        for row, lang in enumerate(LANGS):
            theirs.lora_A[lang].weight.data = layer.lora_A[row].detach().clone()
            theirs.lora_B[lang].weight.data = layer.lora_B[row].detach().clone()
    model.add_weighted_adapter(list(LANGS), [weight] * 3, "fused", combination_type=combination)
    fused = {n: mole.backbone.model.get_submodule(n) for n in mole.bank.layers if ".encoder.layers.1." in n}
    assert fused
    for name, layer in fused.items():
        delta = model.base_model.model.get_submodule(name).get_delta_weight("fused")
        torch.testing.assert_close(layer.merged().weight - layer.experts.base.weight, delta, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_merged_equals_unmerged_and_leaves_plain_linears(form, speech):
    mole = make_mole(form=form)
    torch.nn.init.normal_(mole.fusion.raw)
    before = encode(mole, speech, 1)
    mole.merge()
    torch.testing.assert_close(encode(mole, speech, 1), before, atol=1e-5, rtol=1e-4)
    assert type(mole.backbone.encoder.layers[1].fc1) is torch.nn.Linear


def test_gradients_reach_the_fusion_weights_only(speech):
    mole = make_mole()
    with mole.bank.routed(torch.tensor([0, 1, 2, 0])):
        mole.deep(mole.shallow(*speech)).states.square().sum().backward()
    assert mole.fusion.raw.grad.abs().sum() > 0
    assert all(p.grad is None for p in mole.backbone.parameters())


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="expected shared_layers from 0 to the encoder's 3 layers, got 4"):
        make_mole(shared_layers=4)
    with pytest.raises(ValueError, match="expected form of fusion_conf"):
        FusionConfig(2, form="average")

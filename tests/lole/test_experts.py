from dataclasses import replace

import pytest
import torch
from conftest import random_experts, tiny_whisper

from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.experts import Chosen
from espnet_lole.lole.fast import Batched, Spans
from espnet_lole.whisper.model import Backbone

LANGS = ("de", "en", "zh")
CONFIG = ExpertConfig(rank=4, alpha=8.0)
TOKENS = torch.tensor([[50258, 50259, 50359, 50363, 11, 22, 33]])


def with_experts(langs=LANGS, config=CONFIG, trained=True):
    """A backbone with experts whose B is not zero."""
    backbone = Backbone(tiny_whisper()).eval()
    bank = ExpertBank(backbone.model, langs, config)
    for name, layer in bank.layers.items() if trained else ():
        for row, lang in enumerate(langs):
            generator = torch.Generator().manual_seed(hash((name, LANGS.index(lang))) % 2**31)
            layer.lora_B.data[row] = torch.randn(layer.lora_B.shape[1:], generator=generator) * 0.1
    return backbone, bank


@torch.no_grad()
def run(backbone, speech):
    encoded = backbone.encode(*speech)
    return backbone.logits(backbone.decode(TOKENS.expand(len(speech[1]), -1), encoded))


def test_fresh_experts_and_no_route_are_the_backbone(speech):
    expected = run(Backbone(tiny_whisper()).eval(), speech)
    backbone, bank = with_experts(trained=False)
    with bank.routed(torch.tensor([0, 1, 2, 1])):
        torch.testing.assert_close(run(backbone, speech), expected)
    backbone, bank = with_experts()
    torch.testing.assert_close(run(backbone, speech), expected)


def test_mixed_batch_is_each_expert_alone(speech):
    """The oracle: each expert's product merged into plain linears, an utterance at a time."""
    backbone, bank = with_experts()
    index = torch.tensor([2, 0, 1, 2])
    with bank.routed(index):
        mixed = run(backbone, speech)
    for row, expert in enumerate(index.tolist()):
        merged = Backbone(tiny_whisper()).eval()
        for name, layer in bank.layers.items():
            weight = merged.model.get_submodule(name).weight
            weight.data += CONFIG.alpha / CONFIG.rank * layer.lora_B[expert].detach() @ layer.lora_A[expert].detach()
        length = speech[1][row : row + 1]
        alone = run(merged, (speech[0][row : row + 1, : int(length)], length))
        torch.testing.assert_close(mixed[row], alone[0], atol=2e-3, rtol=1e-3)
    assert not torch.allclose(mixed, run(backbone, speech), atol=1e-2)


def test_only_routed_experts_get_gradients(speech):
    backbone, bank = with_experts()
    for layer in bank.layers.values():
        layer.requires_grad_(True).base.requires_grad_(False)
    with bank.routed(torch.tensor([0, 0, 2, 2])):
        backbone.encode(*speech).states.square().sum().backward()
    for name, p in backbone.named_parameters():
        assert (p.grad is not None) == (".lora_" in name and ".encoder." in name)
        if p.grad is not None:
            assert p.grad[[0, 2]].abs().sum() > 0
            assert p.grad[1].abs().sum() == 0


def test_start_does_not_depend_on_the_neighbours():
    _, together = with_experts(trained=False)
    _, alone = with_experts(langs=("zh",), trained=False)
    for name, layer in alone.layers.items():
        assert torch.equal(layer.lora_A[0], together.layers[name].lora_A[2])
        assert layer.lora_A.abs().max() <= layer.lora_A.shape[2] ** -0.5


def test_route_is_restored_after_an_error():
    _, bank = with_experts()
    with pytest.raises(RuntimeError), bank.routed(torch.tensor([0])):
        raise RuntimeError
    assert bank._route.way is None


@pytest.mark.parametrize("langs", [("de", "en", "zh"), ("de",)])
@pytest.mark.parametrize("index", [[0, 1, 2, 1], [2, 2, 2, 0], [1, 1, 1, 1], [0, 0, 2, 2], [0, 2, 2, 1, 0, 0, 2]])
def test_grouped_utterances_go_where_chosen_factors_lead(langs, index):
    _, bank = with_experts(langs=langs)
    layer, index = next(iter(bank.layers.values())), torch.tensor(index).clamp(max=len(langs) - 1)
    x = torch.randn(len(index), 3, layer.in_features)
    results = []
    for lead in (bank.routed, bank.routed_steps):
        layer.lora_A.requires_grad_(True).grad = layer.lora_B.requires_grad_(True).grad = None
        with lead(index):
            for _ in range(2):  # the second step takes what the first has kept
                y = layer(x)
        y.square().sum().backward()
        results.append((y.detach(), layer.lora_A.grad, layer.lora_B.grad))
    loop = torch.stack(
        [layer.base(x[i]) + layer.scale * x[i] @ layer.lora_A[e].T @ layer.lora_B[e].T for i, e in enumerate(index)]
    )
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0][0], loop)


WAYS = ("spans", "batched", "grouped")
"""On a CPU; on a GPU, utterances in any order; there, in the order of their experts."""


def lead(bank, index, way):
    chosen = Chosen(index)
    chosen.calls_are_dear = chosen.ascending = way == "grouped"
    if way == "batched":
        chosen._parts = Batched(index)
    return bank._route.led(bank._cast_for(chosen))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("langs", [("de", "en", "zh"), ("de",)])
def test_gradients_are_those_of_finite_differences(langs, dropout, way):
    _, bank = with_experts(config=replace(CONFIG, dropout=dropout), langs=langs)
    layer, index = next(iter(bank.layers.values())).double().train(), torch.tensor([2, 0, 2, 1]).clamp(max=len(langs) - 1)
    x = torch.randn(4, 2, layer.in_features, dtype=torch.double, requires_grad=True)
    factors = layer.lora_A.requires_grad_(True), layer.lora_B.requires_grad_(True)

    def output(x, *_):
        torch.manual_seed(0)  # the same is dropped each time
        return layer(x)

    with lead(bank, index, way):
        assert torch.autograd.gradcheck(output, (x, *factors), fast_mode=True)


@pytest.mark.parametrize("index", [[0, 0, 1, 2, 2], [2, 2, 2, 2, 2], [0, 2, 2, 2, 2]])
def test_grouped_products_are_those_of_gathered_factors(index, monkeypatch):
    monkeypatch.setattr("espnet_lole.lole.experts.can_be_grouped", lambda *_: True)  # in float32 too
    _, bank = with_experts()
    layer, index = next(iter(bank.layers.values())), torch.tensor(index)
    x, found = torch.randn(5, 3, layer.in_features, requires_grad=True), []
    for way in ("batched", "grouped"):
        layer.lora_A.requires_grad_(True).grad = layer.lora_B.requires_grad_(True).grad = x.grad = None
        with lead(bank, index, way):
            y = layer(x)
        y.square().sum().backward()
        found.append((y.detach(), x.grad, layer.lora_A.grad, layer.lora_B.grad))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("way", WAYS)
def test_low_precision_gives_the_same_gradients_but_for_rounding(way):
    """Also of an expert of two runs of utterances, and zeros for an absent one."""
    _, bank = with_experts(config=replace(CONFIG, rank=8))
    layer, found = next(iter(bank.layers.values())), []
    x, index = torch.randn(4, 3, layer.in_features), torch.tensor([0, 2, 2, 2] if way == "grouped" else [2, 0, 2, 2])
    for dtype in (torch.float32, torch.bfloat16):
        layer.base.to(dtype)
        layer.lora_A.requires_grad_(True).grad = layer.lora_B.requires_grad_(True).grad = None
        with lead(bank, index, way):
            layer(x.to(dtype)).float().square().mean().backward()
        assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32
        assert not layer.lora_A.grad[1].any() and not layer.lora_B.grad[1].any()
        found.append(torch.cat([layer.lora_A.grad.flatten(), layer.lora_B.grad.flatten()]))
    assert torch.cosine_similarity(*found, dim=0) > 0.999


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("langs, index", [(("de", "en", "zh"), [2, 0, 2, 2]), (("de",), [0, 0, 0, 0])])
def test_experts_of_many_frames_are_merged(langs, index, bias, monkeypatch):
    _, bank = with_experts(langs=langs)
    layer, index, merges = next(iter(bank.layers.values())), torch.tensor(index), []
    if not bias:
        layer.base.bias = None
    multiply = Spans.multiply_merged
    monkeypatch.setattr(Spans, "multiply_merged", lambda self, x, *args: merges.append(len(x)) or multiply(self, x, *args))
    for frames in (3, 200):
        x = torch.randn(4, frames, layer.in_features)
        with torch.no_grad(), bank.routed(index):
            y = layer(x)
            loop = [layer.base(x[i]) + layer.scale * x[i] @ (layer.lora_B[e] @ layer.lora_A[e]).T for i, e in enumerate(index)]
        torch.testing.assert_close(y, torch.stack(loop))
    assert merges == [4 * 200]
    assert not Spans(index.tolist()).merging_pays(x.flatten(0, 1).bfloat16(), layer.weight)


def test_two_banks_do_not_lead_at_once(speech):
    backbone, experts = with_experts()
    student = ExpertBank(backbone.model, ["student"], CONFIG)
    with student.routed(torch.zeros(4, dtype=torch.long)):
        backbone.encode(*speech)
        with (
            experts.routed(torch.tensor([0, 1, 2, 0])),
            pytest.raises(RuntimeError, match="one bank of experts to lead at a time"),
        ):
            backbone.encode(*speech)


def test_backward_keeps_no_copies_of_the_factors():
    """What a layer keeps of many utterances of few frames: its input, the low-rank states and the bank itself, once."""
    _, bank = with_experts()
    layer, kept = next(iter(bank.layers.values())), {}
    layer.lora_A.requires_grad_(True), layer.lora_B.requires_grad_(True)
    x = torch.randn(64, 2, layer.in_features)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t):
        with bank.routed(torch.arange(64) % len(LANGS)):
            layer(x)
    own = (layer.lora_A, layer.lora_B, layer.base.weight, x)
    assert sum(kept.values()) <= sum(t.numel() for t in own) + 64 * 2 * CONFIG.rank + 64


@torch.no_grad()
def test_factors_in_the_precision_of_the_products_change_nothing(speech):
    backbone = Backbone(tiny_whisper(), precision=torch.bfloat16).eval()
    bank = random_experts(ExpertBank(backbone.model, LANGS, CONFIG))
    index, results = torch.tensor([2, 0, 1, 2]), []
    for _ in range(2):
        with bank.routed(index):
            encoded = backbone.encode(*speech)
        with bank.routed_steps(index):
            results.append(backbone.decode(TOKENS[:, :1].expand(4, -1), encoded, backbone.new_cache()))
        bank.store_in(torch.bfloat16)
    assert torch.equal(*results)
    assert {layer.lora_B.dtype for layer in bank.layers.values()} == {torch.bfloat16}


def test_targets_choose_the_linears():
    _, bank = with_experts(config=ExpertConfig(rank=2, targets=("encoder_attn.q_proj",)), trained=False)
    assert len(bank.layers) == 2
    with pytest.raises(ValueError, match=r"got \['qproj'\].*'q_proj'"):
        with_experts(config=ExpertConfig(rank=2, targets=("qproj", "fc1")))
    with pytest.raises(ValueError, match=r"got \['proj_out'\]: there are (?!.*'proj_out')"):
        with_experts(config=ExpertConfig(rank=2, targets=("proj_out",)))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match="expected rank >= 1"):
        ExpertConfig(**wrong)


def test_languages_are_checked():
    _, bank = with_experts()
    with pytest.raises(ValueError, match="got 'fr': there are experts for de en zh"):
        bank.index("fr")
    with pytest.raises(ValueError, match="expected different languages"):
        with_experts(langs=("de", "de"))

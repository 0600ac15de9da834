"""Experts against each expert alone: merged into the plain linears of transformers, or by peft."""

import peft
import pytest
import torch
from conftest import random_experts, tiny_whisper
from peft import LoraConfig

from espnet_lole.lole.experts import (
    Active,
    ExpertConfig,
    ExpertLinear,
    LoRAExperts,
    Selection,
    expert_linear,
    share_weights,
)
from espnet_lole.whisper.model import Whisper

LANGS = ("de", "en", "zh")
TOKENS = torch.tensor([[50258, 50259, 50359, 50363, 11, 22, 33]])
INDICES = [[0, 1, 2, 1], [2, 2, 2, 0], [1, 1, 1, 1], [0, 0, 2, 2], [0, 2, 2, 1, 0, 0, 2]]


@torch.no_grad()
def logits(whisper, speech):
    """Return the logits of the same tokens for each utterance."""
    encoded = whisper.encode(*speech)
    return whisper.logits(whisper.decode(TOKENS.expand(len(speech[1]), -1), encoded))


def first_layer(**options):
    """Return experts and one of their linears."""
    experts = random_experts(**options)
    return experts, experts.layers["model.encoder.layers.0.fc1"]


def test_fresh_experts_and_no_selection_are_the_backbone(whisper, speech):
    expected = logits(whisper, speech)
    fresh = LoRAExperts(Whisper(tiny_whisper()).eval(), LANGS, ExpertConfig(rank=4))
    with fresh.activate([0, 1, 2, 1]):
        torch.testing.assert_close(logits(fresh.whisper, speech), expected)
    trained = random_experts()
    assert torch.equal(logits(trained.whisper, speech), expected)
    with trained.activate(torch.tensor([0, 1, 2, 1])):
        assert not torch.allclose(logits(trained.whisper, speech), expected, atol=1e-2)
        with trained.activate(None):
            assert torch.equal(logits(trained.whisper, speech), expected)


def test_a_mixed_batch_is_each_expert_alone(speech):
    """The oracle: an expert's product merged into plain linears, an utterance at a time."""
    experts, index = random_experts(), [2, 0, 1, 2]
    with experts.activate(torch.tensor(index)):
        mixed = logits(experts.whisper, speech)
    for row, lang in enumerate(LANGS[i] for i in index):
        plain = Whisper(tiny_whisper()).eval()
        for name, layer in experts.layers.items():
            plain.model.get_submodule(name).weight.data += 8.0 / 4 * (layer.lora_B[lang] @ layer.lora_A[lang]).detach()
        length = speech[1][row : row + 1]
        alone = logits(plain, (speech[0][row : row + 1, : int(length)], length))
        torch.testing.assert_close(mixed[row], alone[0], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("index", INDICES)
def test_a_linear_computes_what_pefts_does_in_a_mixed_batch(index):
    linear = torch.nn.Sequential(torch.nn.Linear(12, 20))
    oracle = peft.get_peft_model(
        linear, LoraConfig(r=3, lora_alpha=7, target_modules=["0"], init_lora_weights=False), "de"
    )
    for lang in LANGS[1:]:
        oracle.add_adapter(lang, LoraConfig(r=3, lora_alpha=7, target_modules=["0"], init_lora_weights=False))
    theirs = oracle.base_model.model[0]
    layer = ExpertLinear("0", theirs.base_layer, LANGS, ExpertConfig(rank=3, alpha=7.0), Active())
    for lang in LANGS:
        layer.lora_A[lang], layer.lora_B[lang] = theirs.lora_A[lang].weight, theirs.lora_B[lang].weight
    x, langs = torch.randn(len(index), 5, 12), [LANGS[i] for i in index]
    with torch.no_grad():
        expected = oracle.eval()(x, adapter_names=langs)
        torch.testing.assert_close(expert_linear(layer, x, Selection(langs)), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("langs", [("de", "en", "zh"), ("de",)])
def test_gradients_are_those_of_finite_differences(langs, dropout):
    experts, layer = first_layer(langs=langs, dropout=dropout)
    experts.double().train()
    index = [min(i, len(langs) - 1) for i in (2, 0, 2, 1)]
    x = torch.randn(4, 2, layer.base.in_features, dtype=torch.double, requires_grad=True)

    def output(x, *_):
        torch.manual_seed(0)  # the same is dropped each time
        return layer(x)

    with experts.activate(index):
        assert torch.autograd.gradcheck(output, (x, *layer.lora_A.values(), *layer.lora_B.values()), fast_mode=True)


def test_dropout_is_of_the_experts_alone():
    experts, layer = first_layer(dropout=0.5)
    x = torch.randn(4, 2, layer.base.in_features)
    with torch.no_grad():
        assert torch.equal(layer.train()(x), layer.base(x))
        with experts.activate([0, 1, 2, 0]):
            torch.manual_seed(0)
            dropped = layer.dropout(x)
            torch.manual_seed(0)
            update = layer(x)[1] - layer.base(x)[1]
        torch.testing.assert_close(update, 2.0 * dropped[1] @ layer.lora_A["en"].T @ layer.lora_B["en"].T)


def test_only_active_experts_get_gradients(speech):
    """An absent expert has none at all, so that no optimizer moves it."""
    experts = random_experts()
    with experts.activate([0, 0, 2, 2]):
        experts.whisper.encode(*speech).states.square().sum().backward()
    expected = {
        f"whisper.model.{name}.lora_{factor}.{lang}"
        for name in experts.layers
        for factor in "AB"
        for lang in ("de", "zh")
        if ".encoder." in name
    }
    with_gradient = {name: p.grad for name, p in experts.named_parameters() if p.grad is not None}
    assert set(with_gradient) == expected and all(grad.any() for grad in with_gradient.values())


def test_a_start_depends_on_language_linear_and_seed_alone():
    def start(langs, seed=0):
        experts = LoRAExperts(Whisper(tiny_whisper()), langs, ExpertConfig(rank=4), seed)
        return {name: layer.lora_A["zh"].detach() for name, layer in experts.layers.items()}

    together, alone, other = start(LANGS), start(("zh",)), start(LANGS, seed=1)
    assert all(torch.equal(a, together[name]) and not torch.equal(a, other[name]) for name, a in alone.items())
    assert len({float(a.sum()) for a in alone.values()}) == len(alone)
    for a in alone.values():  # uniform in +- 1 / sqrt(D), as torch starts a linear
        bound = a.shape[1] ** -0.5
        assert 0.8 * bound < a.abs().max() <= bound and a.std() == pytest.approx(bound / 3**0.5, rel=0.35)


def test_selection_is_restored_after_the_context_and_after_an_error():
    experts, layer = first_layer()
    x = torch.randn(2, 3, layer.base.in_features)
    with torch.no_grad():
        with experts.activate([0, 1]):
            outer = layer(x)
            with pytest.raises(RuntimeError, match="stop"), experts.activate([2, 2]):
                assert not torch.equal(layer(x), outer)
                raise RuntimeError("stop")
            assert torch.equal(layer(x), outer)
        assert torch.equal(layer(x), layer.base(x))


def test_experts_own_every_parameter(speech):
    """What ``state_dict`` returns makes another one equal; each trained parameter is of one language's expert."""
    experts = random_experts(LANGS, seed=1)
    other = random_experts(LANGS, seed=2)
    other.load_state_dict(experts.state_dict())
    with experts.activate([2, 0, 1, 2]), other.activate([2, 0, 1, 2]):
        assert torch.equal(logits(experts.whisper, speech), logits(other.whisper, speech))
    by_expert = experts.parameters_of_experts()
    owned = [id(p) for params in by_expert.values() for p in params]
    assert list(by_expert) == list(LANGS) and len(owned) == len(set(owned)) == 3 * 2 * len(experts.layers)
    assert set(owned) == {id(p) for p in experts.parameters() if p.requires_grad}
    names = {id(p): name for name, p in experts.named_parameters()}
    assert all(names[id(p)].endswith(f".{lang}") for lang, params in by_expert.items() for p in params)


def test_a_merged_linear_computes_what_its_expert_does():
    experts, layer = first_layer()
    x = torch.randn(2, 3, layer.base.in_features)
    with torch.no_grad(), experts.activate([1, 1]):
        torch.testing.assert_close(layer.merge("en")(x), layer(x))
    layer.base.to(torch.bfloat16)
    merged = layer.merge("en").weight
    exact = layer.base.weight.float() + 2.0 * layer.lora_B["en"] @ layer.lora_A["en"]
    assert torch.equal(merged, exact.to(torch.bfloat16))


@torch.no_grad()
def test_factors_in_the_precision_of_the_products_change_nothing(speech):
    experts = random_experts(whisper=Whisper(tiny_whisper(), precision=torch.bfloat16).eval())
    results = []
    for _ in range(2):
        with experts.activate([2, 0, 1, 2]):
            encoded = experts.whisper.encode(*speech)
            results.append(experts.whisper.decode(TOKENS[:, :1].expand(4, -1), encoded, experts.whisper.new_cache()))
        assert experts.cast_(torch.bfloat16) is experts
    assert torch.equal(*results)
    assert {p.dtype for params in experts.parameters_of_experts().values() for p in params} == {torch.bfloat16}


def test_a_fingerprint_is_of_languages_and_factors():
    experts = random_experts()
    assert experts.fingerprint() == random_experts().fingerprint() < 2**48
    assert (
        len(
            {random_experts(langs, seed=seed).fingerprint() for langs, seed in ((LANGS, 0), (LANGS, 1), (LANGS[:2], 0))}
        )
        == 3
    )
    experts.layers["model.decoder.layers.1.fc2"].lora_A["zh"].data[-1, -1] += 1e-3
    assert experts.fingerprint() != random_experts().fingerprint()
    assert random_experts().to("meta").fingerprint() == 0


def test_two_whispers_share_weights_and_not_experts(speech):
    """A second set of experts on the same weights: what one computes does not depend on the other's selection."""
    whisper = Whisper(tiny_whisper(), precision=torch.bfloat16).eval()
    plain = {name: p.data_ptr() for name, p in whisper.named_parameters()}
    teacher = random_experts(whisper=share_weights(whisper))
    student = random_experts(("student",), seed=1, whisper=whisper)
    for experts in (teacher, student):
        bases = {
            name.replace(".base.", "."): p for name, p in experts.whisper.named_parameters() if ".lora_" not in name
        }
        assert {name: p.data_ptr() for name, p in bases.items()} == plain
    with teacher.activate([0, 1, 2, 0]):
        expected = logits(teacher.whisper, speech)
        with student.activate([0, 0, 0, 0]):
            assert torch.equal(logits(teacher.whisper, speech), expected)
            assert not torch.equal(logits(student.whisper, speech), expected)


def test_targets_choose_the_linears():
    assert len(random_experts(targets=("encoder_attn.q_proj",)).layers) == 2
    with pytest.raises(ValueError, match=r"got \['qproj'\].*'q_proj'"):
        random_experts(targets=("qproj", "fc1"))
    with pytest.raises(ValueError, match=r"got \['proj_out'\]: there are (?!.*'proj_out')"):
        random_experts(targets=("proj_out",))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match="expected rank >= 1"):
        ExpertConfig(**wrong)


def test_languages_without_an_expert_are_refused():
    experts = random_experts()
    assert experts.indices(["zh", "de", "zh"]) == [2, 0, 2]
    with pytest.raises(ValueError, match="there is no expert for 'fr'; there are experts for de en zh"):
        experts.indices(["de", "fr"])
    for wrong in (("de", "de"), ()):
        with pytest.raises(ValueError, match="expected different languages"):
            random_experts(wrong)

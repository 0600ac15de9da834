"""Losses of distillation against formulas, torch and scipy; the student's start against the SVD of whole matrices."""

import math

import pytest
import torch
from conftest import random_experts, tiny_whisper
from scipy.spatial.distance import jensenshannon
from torch.nn import functional as F

from espnet_lole.lole.experts import ExpertConfig, LoRAExperts, share_weights
from espnet_lole.lole.kd import (
    STUDENT,
    KDConfig,
    LoRAKD,
    cosine_loss,
    init_from_average,
    js_divergence,
    truncate,
)
from espnet_lole.lole.mole import merge_delta
from espnet_lole.whisper.model import Whisper

TOKENS = torch.tensor([[50258, 50259, 50359, 50363, 11, 22, 33]])
LAYER = "model.encoder.layers.1.fc1"


def make_pair(langs=("de", "en"), rank=3, student_rank=8, **student_config) -> tuple[LoRAExperts, LoRAExperts]:
    """Return a fresh student, and random experts on a Whisper with the same weights."""
    whisper = Whisper(tiny_whisper()).eval()
    experts = random_experts(langs, rank=rank, alpha=2.0 * rank, whisper=share_weights(whisper))
    return LoRAExperts(whisper, [STUDENT], ExpertConfig(student_rank, alpha=4.0, **student_config)), experts


def make_kd(**kd) -> LoRAKD:
    student, experts = make_pair(("de", "en", "zh"))
    return LoRAKD(student, experts, KDConfig(**kd))


def test_cosine_loss_is_one_minus_torchs_cosine():
    student, teacher = torch.randn(2, 4, 8), 3 * torch.randn(2, 4, 8)
    torch.testing.assert_close(cosine_loss(student, teacher), 1 - F.cosine_similarity(student, teacher, dim=-1))
    assert torch.equal(cosine_loss(student, student.clone()), torch.zeros(2, 4))
    torch.testing.assert_close(cosine_loss(student, -student), torch.full((2, 4), 2.0))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_js_divergence_is_that_of_scipy_times_the_square_of_the_temperature(temperature):
    student, teacher = 3 * torch.randn(6, 50), 3 * torch.randn(6, 50)
    p, q = (logits.div(temperature).softmax(-1).double().numpy() for logits in (student, teacher))
    distances = torch.tensor(jensenshannon(p, q, axis=1), dtype=torch.float32)  # the roots of the divergences
    torch.testing.assert_close(js_divergence(student, teacher, temperature), temperature**2 * distances**2)


def test_js_divergence_is_symmetric_bounded_and_zero_for_equal_logits():
    student, teacher = 10 * torch.randn(7, 100), 10 * torch.randn(7, 100)
    divergence = js_divergence(student, teacher, 1.0)
    torch.testing.assert_close(divergence, js_divergence(teacher, student, 1.0))
    assert (divergence > 0.01).all() and (divergence <= math.log(2) + 1e-6).all()
    assert js_divergence(student, student + 5.0, 2.0).abs().max() < 1e-5  # a shift of all logits changes no probability
    apart = js_divergence(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]), 1.0)
    torch.testing.assert_close(apart, torch.tensor([math.log(2)]))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradients_of_the_divergence_are_those_of_its_formula(temperature):
    student, teacher = 2 * torch.randn(5, 9, dtype=torch.double), 2 * torch.randn(5, 9, dtype=torch.double)
    student, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
    js_divergence(student, teacher, temperature).sum().backward()
    p, q = (plain / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    m = (p + q) / 2
    (temperature**2 / 2 * (p * (p / m).log() + q * (q / m).log()).sum()).backward()
    torch.testing.assert_close(student.grad, plain.grad, atol=1e-6, rtol=1e-4)


def test_losses_of_low_precision_are_computed_in_float32():
    student, teacher = torch.randn(4, 50).bfloat16(), torch.randn(4, 50).bfloat16()
    assert torch.equal(js_divergence(student, teacher, 2.0), js_divergence(student.float(), teacher.float(), 2.0))
    assert torch.equal(cosine_loss(student, teacher), cosine_loss(student.float(), teacher.float()))


def test_layer_losses_are_sums_over_valid_positions(speech):
    kd = make_kd(encoder_layers=(2,), decoder_layers=(1, 2))
    tokens = TOKENS.expand(2, -1)
    with torch.no_grad():
        embedded = kd.student.whisper.embed_speech(speech[0][:2], speech[1][:2])
        student, teacher = kd.run_student(embedded, tokens), kd.run_teacher(embedded, tokens, [0, 2])
    valid = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    for states in (teacher.layers["enc2"][1, 28:], teacher.layers["dec1"][1, 5:]):
        states.fill_(1e6)  # what is not valid has no influence
    losses = kd.layer_losses(student, teacher, {"encoder": embedded.mask, "decoder": valid})
    assert list(losses) == ["enc2", "dec1", "dec2"]
    frames = int(embedded.mask.sum())
    assert [float(count) for _, count in losses.values()] == [frames, 12, 12]
    for mask, (name, (total, _)) in zip((embedded.mask, valid, valid), losses.items(), strict=True):
        cosines = F.cosine_similarity(student.layers[name][mask], teacher.layers[name][mask], dim=-1)
        torch.testing.assert_close(total, (1 - cosines).sum(), atol=1e-4, rtol=1e-4)
    everything = kd.layer_losses(student, teacher, {"encoder": None, "decoder": None})
    assert [float(count) for _, count in everything.values()] == [2 * 50, 14, 14]


def test_recorded_states_are_the_outputs_of_the_layers(speech):
    """The oracle: the hidden states that transformers returns, on 30 s."""
    kd, samples = make_kd(), 480_000
    sound = torch.randn(1, samples, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.no_grad():
        whisper = kd.student.whisper
        states = kd.run_student(whisper.embed_speech(sound, torch.tensor([samples])), TOKENS)
        mel, _ = whisper.features(sound, torch.tensor([samples]))
        with kd.student.activate([0]):
            stock = whisper.model(input_features=mel, decoder_input_ids=TOKENS, output_hidden_states=True)
    expected = {f"enc{n}": stock.encoder_hidden_states[n] for n in (1, 2)} | {"dec1": stock.decoder_hidden_states[1]}
    last = {"enc3": whisper.encoder.layer_norm, "dec2": whisper.decoder.layer_norm}  # the oracle's are after the norm
    assert states.layers.keys() == expected.keys() | last.keys()
    for name, oracle in expected.items():
        torch.testing.assert_close(states.layers[name], oracle, atol=1e-3, rtol=1e-3)
    normed = {name: norm(states.layers[name]) for name, norm in last.items()}
    torch.testing.assert_close(normed["enc3"], stock.encoder_last_hidden_state, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(normed["dec2"], states.last, atol=1e-4, rtol=1e-4)


def test_layers_keep_their_names_in_whatever_order_they_are_given(speech):
    kd, everything = make_kd(encoder_layers=(3, 1), decoder_layers=(2, 1)), make_kd()
    with torch.no_grad():
        embedded = kd.student.whisper.embed_speech(*speech)
        some, every = (x.run_student(embedded, TOKENS.expand(4, -1)).layers for x in (kd, everything))
    assert list(kd.compared) == ["enc3", "enc1", "dec2", "dec1"] and set(some) == set(kd.compared)
    assert all(torch.equal(states, every[name]) for name, states in some.items())


def test_student_and_teacher_share_the_backbone_and_only_the_student_has_gradients(speech):
    kd = make_kd()
    bases = [
        {name: p.data_ptr() for name, p in experts.whisper.named_parameters() if ".lora_" not in name}
        for experts in (kd.student, kd.teacher)
    ]
    assert bases[0] == bases[1]
    embedded = kd.student.whisper.embed_speech(*speech)
    student = kd.run_student(embedded, TOKENS.expand(4, -1))
    teacher = kd.run_teacher(embedded, TOKENS.expand(4, -1), [0, 1, 2, 0])
    assert not teacher.last.requires_grad and not torch.allclose(student.last, teacher.last, atol=1e-2)
    (student.last - teacher.last).square().sum().backward()
    with_gradient = {id(p) for p in kd.parameters() if p.grad is not None}
    assert with_gradient == set(map(id, kd.student.parameters_of_experts()[STUDENT]))


@pytest.mark.parametrize(("experts", "rank", "shape"), [(8, 4, (48, 64)), (3, 16, (40, 20)), (2, 5, (8, 9))])
def test_the_average_is_truncated_as_the_svd_of_the_whole_matrix(experts, rank, shape):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(experts, rank, shape[1], generator=generator)
    b = torch.randn(experts, shape[0], rank, generator=generator) / shape[0]
    weights = torch.rand(experts, generator=generator)
    whole = sum(w * y @ x for w, x, y in zip(weights, a, b, strict=True))
    merged = merge_delta(weights[None], a, b)
    u, s, vh = torch.linalg.svd(whole, full_matrices=False)
    for k in (1, 7, 1000):
        small_a, small_b, share = truncate(*merged, k)
        nearest = u[:, :k] * s[:k] @ vh[:k]
        torch.testing.assert_close(small_b @ small_a, nearest, atol=1e-5, rtol=1e-5)
        assert len(small_a) == small_b.shape[1] == min(k, experts * rank, *shape)
        assert share == pytest.approx(float(s[:k].square().sum() / s.square().sum()), abs=1e-5)


def test_a_student_of_full_rank_starts_as_the_average_of_the_experts():
    """Whatever the scales of both are."""
    student, experts = make_pair()
    shares = init_from_average(student, experts)
    assert shares.keys() == student.layers.keys() and min(shares.values()) == pytest.approx(1.0)
    for name, layer in student.layers.items():
        oracle = experts.layers[name]
        mean = sum(oracle.scale * oracle.lora_B[lang] @ oracle.lora_A[lang] for lang in ("de", "en")) / 2
        torch.testing.assert_close(
            layer.scale * layer.lora_B[STUDENT] @ layer.lora_A[STUDENT], mean, atol=1e-5, rtol=1e-4
        )


def test_ranks_beyond_the_experts_can_still_learn():
    """B of them is zero and A is not: B has a gradient."""
    student, experts = make_pair(("de",), rank=2, student_rank=6)
    init_from_average(student, experts)
    layer = student.layers[LAYER]
    assert layer.lora_B[STUDENT][:, 2:].abs().sum() == 0 and layer.lora_A[STUDENT][2:].abs().min() > 0
    assert layer.lora_B[STUDENT][:, :2].abs().min() > 0


def test_mistakes_are_refused():
    for wrong in ({"kd": "some"}, {"layer_weight": -1.0}, {"temperature": 0.0}, {"final_factor": -1.0}):
        with pytest.raises(ValueError, match="expected kd of"):
            KDConfig(**wrong)
    student, experts = make_pair()
    with pytest.raises(ValueError, match="expected the experts for kd_conf kd: both, got none: give --experts"):
        LoRAKD(student, None, KDConfig())
    for part, layers in (("encoder", (1, 4)), ("decoder", (0,))):
        with pytest.raises(ValueError, match=rf"layers from 1 to \d in {part}_layers of kd_conf, got \[[40]\]"):
            LoRAKD(student, experts, KDConfig(**{f"{part}_layers": layers}))
    other, experts = make_pair(targets=("fc1",))
    with pytest.raises(ValueError, match="expected a student on the linears of the experts"):
        init_from_average(other, experts)

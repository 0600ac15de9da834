"""Each fast form against the plain ``expert_linear``: values, gradients and precisions."""

import pytest
import torch
from torch import nn

from espnet_lole.lole import fast
from espnet_lole.lole.experts import Active, ExpertConfig, ExpertLinear, Selection, expert_linear

LANGS = ("de", "en", "zh")
SORTED = [["de", "de", "en", "en"], ["zh", "zh", "zh", "de"], ["en", "de", "zh"], ["de", "en", "en", "en", "en", "zh"]]
UNSORTED = [["de", "en", "de", "zh"], ["zh", "de", "de", "en", "zh", "zh", "de"]]


def make_layer(dtype=torch.float32, bias=True, rank=8, sizes=(16, 24)) -> ExpertLinear:
    """Return a linear with random experts of three languages."""
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(*sizes, bias).to(dtype).requires_grad_(False)
    layer = ExpertLinear("fc1", base, LANGS, ExpertConfig(rank=rank, alpha=1.5 * rank), Active())
    for factor in (*layer.lora_A.values(), *layer.lora_B.values()):
        factor.data = torch.randn(factor.shape, generator=generator) * 0.3
    return layer


def run(form, layer, x, selection):
    """Return output, and the gradients of x and of each factor, of a loss that weighs every output."""
    x = x.clone().requires_grad_()
    leaves = [x, *layer.lora_A.values(), *layer.lora_B.values()]
    y = form(layer, x, selection)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    return y.detach(), torch.autograd.grad((y.float() * weights).sum(), leaves, allow_unused=True)


class Masked(nn.Module):
    """A dropout that drops every other input."""

    def forward(self, x):
        return x * torch.tensor([0.0, 2.0] * 8)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("langs", SORTED + UNSORTED)
@torch.no_grad()
def test_batched_products_are_the_plain_ones(langs, bias):
    layer, selection = make_layer(bias=bias), Selection(langs)
    for _ in range(2):  # the second step takes the factors that the first stacked
        x = torch.randn(len(langs), 1, 16)
        expected = expert_linear(layer, x, selection)
        torch.testing.assert_close(fast.batched_expert_linear(layer, x, selection), expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("langs", [SORTED[0], SORTED[1], UNSORTED[0]])
@torch.no_grad()
def test_batched_products_in_bfloat16_differ_by_rounding(langs, stored):
    """Factors stored in float32 or in bfloat16, as ``cast_`` stores them."""
    layer = make_layer(torch.bfloat16)
    layer.lora_A.to(stored), layer.lora_B.to(stored)
    x = torch.randn(len(langs), 1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = expert_linear(layer, x, Selection(langs))
        got = fast.batched_expert_linear(layer, x, Selection(langs))
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("langs", SORTED)
@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="needs PyTorch 2.10")
def test_grouped_products_and_their_gradients_differ_by_rounding(langs, frames):
    """Gradients of float32 factors are in float32; those of an absent language are None."""
    layer = make_layer(torch.bfloat16)
    x, selection = torch.randn(len(langs), frames, 16), Selection(langs)
    with torch.autocast("cpu", torch.bfloat16):
        expected, expected_grads = run(expert_linear, layer, x, selection)
        got, grads = run(fast.grouped_expert_linear, layer, x, selection)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.02)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert (grad is None) == (expected_grad is None)
        if grad is not None:
            assert grad.dtype == expected_grad.dtype == torch.float32
            assert torch.cosine_similarity(grad.flatten(), expected_grad.flatten(), dim=0) > 0.999
            assert grad.norm() / expected_grad.norm() == pytest.approx(1, abs=0.01)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="needs PyTorch 2.10")
def test_a_gpu_groups_only_bfloat16_rows_of_16_bytes(monkeypatch):
    """What it would refuse goes through the plain form, and so does a batch of one language."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    layer, x, mixed = make_layer(torch.bfloat16), torch.randn(2, 3, 16), Selection(["de", "en"])
    assert fast.choose(layer, x, mixed) is fast.grouped_expert_linear
    for plain in (
        (make_layer(), x, mixed),
        (make_layer(torch.bfloat16, rank=4), x, mixed),
        (make_layer(torch.bfloat16, sizes=(12, 24)), x[..., :12], mixed),
        (make_layer(torch.bfloat16, sizes=(16, 20)), x, mixed),
        (layer, x, Selection(["de", "en", "de"])),
        (layer, x, Selection(["de", "de"])),
    ):
        assert fast.choose(*plain) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.choose(make_layer(), x, mixed) is fast.grouped_expert_linear


def test_a_cpu_batches_decoding_steps_of_several_languages_and_adds_updates_in_place_elsewhere():
    layer, mixed = make_layer(rank=4), Selection(["de", "en", "de"])
    with torch.no_grad():
        assert fast.choose(layer, torch.randn(3, 3, 16), mixed) is fast.batched_expert_linear
        assert fast.choose(layer, torch.randn(3, 4, 16), mixed) is fast.inplace_expert_linear
        assert fast.choose(layer, torch.randn(2, 1, 16), Selection(["de", "de"])) is fast.inplace_expert_linear
    assert fast.choose(layer, torch.randn(3, 1, 16), mixed) is fast.inplace_expert_linear  # stacks have no gradient


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("langs", [*SORTED, *UNSORTED, ["de", "de"]])
def test_updates_in_place_and_their_gradients_are_the_plain_ones(langs, bias, dropped):
    layer, x, selection = make_layer(bias=bias), torch.randn(len(langs), 5, 16), Selection(langs)
    layer.dropout = Masked() if dropped else layer.dropout
    expected, expected_grads = run(expert_linear, layer, x, selection)
    got, grads = run(fast.inplace_expert_linear, layer, x, selection)
    torch.testing.assert_close(got, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert (grad is None) == (expected_grad is None)  # None for an absent language
        if grad is not None:
            torch.testing.assert_close(grad, expected_grad, atol=1e-4, rtol=1e-4)


def test_updates_in_place_have_the_gradients_of_finite_differences():
    layer, selection = make_layer(torch.float64).double(), Selection(["de", "en", "de"])
    x = torch.randn(3, 2, 16, dtype=torch.float64, requires_grad=True)
    factors = [f[lang] for f in (layer.lora_A, layer.lora_B) for lang in ("de", "en")]
    assert torch.autograd.gradcheck(lambda x, *_: fast.inplace_expert_linear(layer, x, selection), (x, *factors))


def test_updates_in_place_in_bfloat16_leave_gradients_in_float32():
    layer = make_layer(torch.bfloat16)
    x, selection = torch.randn(3, 4, 16), Selection(["de", "en", "zh"])
    with torch.autocast("cpu", torch.bfloat16):
        expected, expected_grads = run(expert_linear, layer, x, selection)
        got, grads = run(fast.inplace_expert_linear, layer, x, selection)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.02)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == expected_grad.dtype == torch.float32
        assert torch.cosine_similarity(grad.flatten(), expected_grad.flatten(), dim=0) > 0.999


def test_frozen_experts_let_the_gradient_of_their_input_through():
    layer, selection = make_layer().requires_grad_(False), Selection(["de", "en"])
    x = torch.randn(2, 3, 16)
    expected, got = (x.clone().requires_grad_() for _ in range(2))
    expert_linear(layer, expected, selection).square().sum().backward()
    fast.inplace_expert_linear(layer, got, selection).square().sum().backward()
    torch.testing.assert_close(got.grad, expected.grad)

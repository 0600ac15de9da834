"""Each fast form against the plain ``expert_linear``: values, gradients and precisions."""

import pytest
import torch
from torch import nn

from espnet_lole.lole import fast
from espnet_lole.lole.experts import Selection, expert_linear

LANGS = ("de", "en", "zh")
SORTED = [["de", "de", "en", "en"], ["zh", "zh", "zh", "de"], ["en", "de", "zh"], ["de", "en", "en", "en", "en", "zh"]]
UNSORTED = [["de", "en", "de", "zh"], ["zh", "de", "de", "en", "zh", "zh", "de"]]


def make_linear(dtype=torch.float32, bias=True, size=24):
    """Return a linear, A and B of three languages, and an input's width."""
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(16, size, bias).to(dtype).requires_grad_(False)
    shapes = (8, 16), (size, 8)
    a, b = (
        nn.ParameterDict({lang: torch.randn(shape, generator=generator) * 0.3 for lang in LANGS}) for shape in shapes
    )
    return base, a, b


def run(form, x, base, a, b, selection):
    """Return output, and the gradients of x and of each factor, of a loss that weighs every output."""
    x = x.clone().requires_grad_()
    leaves = [x, *a.values(), *b.values()]
    y = form(x, x, base, a, b, selection, 1.5)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    return y.detach(), torch.autograd.grad((y.float() * weights).sum(), leaves, allow_unused=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("langs", SORTED + UNSORTED)
@torch.no_grad()
def test_batched_products_are_the_plain_ones(langs, bias):
    base, a, b = make_linear(bias=bias)
    selection = Selection(langs)
    for _ in range(2):  # the second step takes the factors that the first stacked
        x = torch.randn(len(langs), 1, 16)
        expected = expert_linear(x, x, base, a, b, selection, 1.5)
        torch.testing.assert_close(fast.batched_expert_linear(x, x, base, a, b, selection, 1.5), expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("langs", [SORTED[0], SORTED[1], UNSORTED[0]])
@torch.no_grad()
def test_batched_products_in_bfloat16_differ_by_rounding(langs, stored):
    """Factors stored in float32 or in bfloat16, as ``cast_`` stores them."""
    base, a, b = make_linear(torch.bfloat16)
    a, b = a.to(stored), b.to(stored)
    x = torch.randn(len(langs), 1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = expert_linear(x, x, base, a, b, Selection(langs), 1.5)
        got = fast.batched_expert_linear(x, x, base, a, b, Selection(langs), 1.5)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("langs", SORTED)
@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="needs PyTorch 2.10")
def test_grouped_products_and_their_gradients_differ_by_rounding(langs, frames):
    """Gradients of float32 factors are in float32; those of an absent language are None."""
    base, a, b = make_linear(torch.bfloat16)
    x, selection = torch.randn(len(langs), frames, 16), Selection(langs)
    with torch.autocast("cpu", torch.bfloat16):
        expected, expected_grads = run(expert_linear, x, base, a, b, selection)
        got, grads = run(fast.grouped_expert_linear, x, base, a, b, selection)
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
    x, weight, mixed = torch.randn(2, 3, 16), torch.randn(24, 16, dtype=torch.bfloat16), Selection(["de", "en"])
    assert fast.choose(x, weight, 8, mixed) is fast.grouped_expert_linear
    for plain in (
        (x, weight.float(), 8, mixed),
        (x, weight, 4, mixed),
        (x[..., :12], weight[:, :12], 8, mixed),
        (x, weight[:20], 8, mixed),
        (x, weight, 8, Selection(["de", "en", "de"])),
        (x, weight, 8, Selection(["de", "de"])),
    ):
        assert fast.choose(*plain) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.choose(x, weight.float(), 8, mixed) is fast.grouped_expert_linear


def test_a_cpu_batches_decoding_steps_of_several_languages_and_adds_updates_in_place_elsewhere():
    weight, mixed = torch.randn(24, 16), Selection(["de", "en", "de"])
    with torch.no_grad():
        assert fast.choose(torch.randn(3, 3, 16), weight, 4, mixed) is fast.batched_expert_linear
        assert fast.choose(torch.randn(3, 4, 16), weight, 4, mixed) is fast.inplace_expert_linear
        assert fast.choose(torch.randn(2, 1, 16), weight, 4, Selection(["de", "de"])) is fast.inplace_expert_linear
    assert fast.choose(torch.randn(3, 1, 16), weight, 4, mixed) is fast.inplace_expert_linear  # stacks have no gradient


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("langs", [*SORTED, *UNSORTED, ["de", "de"]])
def test_updates_in_place_and_their_gradients_are_the_plain_ones(langs, bias, dropped):
    base, a, b = make_linear(bias=bias)
    x, selection = torch.randn(len(langs), 5, 16), Selection(langs)
    mask = torch.tensor([0.0, 2.0] * 8) if dropped else None

    def through(form):
        def product(x, _, *others):
            return form(x, x if mask is None else x * mask, *others)

        return run(product, x, base, a, b, selection)

    expected, expected_grads = through(expert_linear)
    got, grads = through(fast.inplace_expert_linear)
    torch.testing.assert_close(got, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert (grad is None) == (expected_grad is None)  # None for an absent language
        if grad is not None:
            torch.testing.assert_close(grad, expected_grad, atol=1e-4, rtol=1e-4)


def test_updates_in_place_have_the_gradients_of_finite_differences():
    base, a, b = make_linear(torch.float64)
    selection = Selection(["de", "en", "de"])

    def product(x, *factors):
        pairs = [dict(zip(("de", "en"), pair, strict=True)) for pair in (factors[:2], factors[2:])]
        return fast.inplace_expert_linear(x, x, base, *pairs, selection, 1.5)

    factors = [f[lang].detach().double().requires_grad_() for f in (a, b) for lang in ("de", "en")]
    x = torch.randn(3, 2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(product, (x, *factors))


def test_updates_in_place_in_bfloat16_leave_gradients_in_float32():
    base, a, b = make_linear(torch.bfloat16)
    x, selection = torch.randn(3, 4, 16), Selection(["de", "en", "zh"])
    with torch.autocast("cpu", torch.bfloat16):
        expected, expected_grads = run(expert_linear, x, base, a, b, selection)
        got, grads = run(fast.inplace_expert_linear, x, base, a, b, selection)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.02)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == expected_grad.dtype == torch.float32
        assert torch.cosine_similarity(grad.flatten(), expected_grad.flatten(), dim=0) > 0.999


def test_frozen_experts_let_the_gradient_of_their_input_through():
    base, a, b = make_linear()
    selection = Selection(["de", "en"])
    x = torch.randn(2, 3, 16)
    for factors in (a, b):
        factors.requires_grad_(False)
    expected, got = (x.clone().requires_grad_() for _ in range(2))
    expert_linear(expected, expected, base, a, b, selection, 1.5).square().sum().backward()
    fast.inplace_expert_linear(got, got, base, a, b, selection, 1.5).square().sum().backward()
    torch.testing.assert_close(got.grad, expected.grad)

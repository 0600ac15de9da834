"""ExpertAdamW against torch's AdamW and clipping on each expert alone."""

import copy
import logging

import pytest
import torch
from torch import nn

from espnet_lole.train.optimizer import ExpertAdamW

SHAPES = (3, 4), (5,)
LANGS = ("de", "en", "zh")


def make_experts() -> dict[str, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return {lang: [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES] for lang in LANGS}


def clone(experts: dict[str, list[nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    return {lang: [nn.Parameter(p.detach().clone()) for p in params] for lang, params in experts.items()}


def test_each_expert_moves_as_by_torchs_adamw_alone():
    """With clipping, weight decay, and experts that are absent from some batches."""
    together = make_experts()
    alone = clone(together)
    options = {"lr": 0.1, "weight_decay": 0.05, "betas": (0.8, 0.9)}
    optimizer = ExpertAdamW(together, max_grad_norm=1.5, **options)
    optimizers = {lang: torch.optim.AdamW(params, **options) for lang, params in alone.items()}
    generator = torch.Generator().manual_seed(1)
    for present, size in [(LANGS, 0.1), (LANGS, 1.0), (LANGS, 0.1), (("de",), 1.0), (("en", "zh"), 1.0), (LANGS, 0.1)]:
        optimizer.zero_grad()
        for lang in present:
            for p, q in zip(together[lang], alone[lang], strict=True):
                q.grad = size * torch.randn(q.shape, generator=generator)  # those of size 1 are clipped
                p.grad = q.grad.clone()
            nn.utils.clip_grad_norm_(alone[lang], 1.5)
            optimizers[lang].step()
        optimizer.step()
        for lang in LANGS:
            for p, q in zip(together[lang], alone[lang], strict=True):
                torch.testing.assert_close(p, q)
    for lang in LANGS:
        for p, q in zip(together[lang], alone[lang], strict=True):
            torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], optimizers[lang].state[q]["exp_avg_sq"])
            assert optimizer.state[p]["step"] == optimizers[lang].state[q]["step"]


def test_an_absent_expert_does_not_move_by_weight_decay_or_momentum():
    experts = make_experts()
    optimizer = ExpertAdamW(experts, lr=0.1, weight_decay=0.5)
    for present in (LANGS, ("de",), ("de",)):
        optimizer.zero_grad()
        for lang in present:
            for p in experts[lang]:
                p.grad = torch.ones_like(p)
        before = clone(experts)
        optimizer.step()
        for lang in LANGS:
            same = all(torch.equal(p, q) for p, q in zip(experts[lang], before[lang], strict=True))
            assert same == (lang not in present)


def test_a_resumed_optimizer_goes_on_as_the_one_that_was_saved():
    experts = make_experts()
    first = ExpertAdamW(experts, lr=0.1)
    for params in experts.values():
        for p in params:
            p.grad = torch.ones_like(p)
    first.step()
    copies = clone(experts)
    second = ExpertAdamW(copies, lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for lang in LANGS:
        for p, q in zip(experts[lang], copies[lang], strict=True):
            q.grad = p.grad.clone()
    first.step()
    second.step()
    assert all(torch.equal(p, q) for lang in LANGS for p, q in zip(experts[lang], copies[lang], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_expert_without_a_finite_gradient_is_left_out_alone(bad, caplog):
    """The others move as if it had been absent; the log names it, once a step and with their number."""
    moved = []
    for spoil in (True, False):
        experts = make_experts()
        optimizer = ExpertAdamW(experts, lr=0.1, max_grad_norm=1.0)
        before = clone(experts)
        for lang, params in experts.items():
            for p in params:
                p.grad = torch.full_like(p, 0.5) if spoil or lang != "en" else None
        if spoil:
            experts["en"][1].grad[2] = bad
        with caplog.at_level(logging.WARNING):
            optimizer.step()
            optimizer.report_skipped()
        assert ("the gradient of en is not finite: this step does not move its expert" in caplog.text) == spoil
        assert ("updates of experts left out because their gradient was not finite: en 1" in caplog.text) == spoil
        for lang in LANGS:
            stays = all(torch.equal(p, q) for p, q in zip(experts[lang], before[lang], strict=True))
            assert stays == (lang == "en")
        moved.append(experts)
        caplog.clear()
    assert all(torch.equal(p, q) for lang in LANGS for p, q in zip(moved[0][lang], moved[1][lang], strict=True))


def test_a_batch_without_any_finite_gradient_moves_nothing():
    experts = make_experts()
    before = clone(experts)
    optimizer = ExpertAdamW(experts)
    optimizer.step()
    for params in experts.values():
        for p in params:
            p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    assert all(torch.equal(p, q) for lang in LANGS for p, q in zip(experts[lang], before[lang], strict=True))
    assert not optimizer.state


def test_a_scaled_loss_and_accumulated_batches_give_the_step_of_the_mean_gradient():
    """As ESPnet's trainer does with AMP: each loss over the number of batches, scaled, unscaled before the step."""
    experts = make_experts()
    oracle = clone(experts)
    optimizer, plain = ExpertAdamW(experts, 0.5, lr=0.01), ExpertAdamW(oracle, 0.5, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weights = [torch.randn(2, *shape) for shape in SHAPES]
    for batch in range(2):
        loss = sum((p * w[batch]).sum() for p, w in zip(experts["de"], weights, strict=True))
        scaler.scale(loss / 2).backward()
    for p, w in zip(oracle["de"], weights, strict=True):
        p.grad = w.mean(0)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    plain.step()
    for p, q in zip(experts["de"], oracle["de"], strict=True):
        torch.testing.assert_close(p, q)
    experts["de"][0].grad = torch.full_like(experts["de"][0], torch.inf)
    before = clone(experts)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0 and torch.equal(experts["de"][0], before["de"][0])

import copy

import pytest
import torch
from torch import nn

from espnet_lole.train.optimizer import ExpertAdamW


def make(experts: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(experts, *shape, generator=generator)) for shape in ((3, 4), (5,))]


def test_equal_to_adamw_on_each_expert_alone():
    """Stacked experts, absent from some batches, against torch's AdamW with its own clipping on each."""
    stacked = make(3)
    alone = [[nn.Parameter(p[e].detach().clone()) for p in stacked] for e in range(3)]
    options = {"lr": 0.1, "weight_decay": 0.05, "betas": (0.8, 0.9)}
    ours = ExpertAdamW(stacked, max_grad_norm=1.5, **options)
    theirs = [torch.optim.AdamW(params, **options) for params in alone]
    generator = torch.Generator().manual_seed(1)
    for present, size in [
        ((0, 1, 2), 0.1),
        ((0, 1, 2), 1.0),
        ((0, 1, 2), 0.1),
        ((0,), 1.0),
        ((1, 2), 1.0),
        ((0, 1, 2), 0.1),
    ]:
        for p in stacked:
            p.grad = torch.zeros_like(p)
        for e in present:
            for p, q in zip(stacked, alone[e], strict=True):
                q.grad = size * torch.randn(q.shape, generator=generator)  # those of size 1 are clipped
                p.grad[e] = q.grad
            nn.utils.clip_grad_norm_(alone[e], 1.5)
            theirs[e].step()
        ours.step()
    for e in range(3):
        for p, q in zip(stacked, alone[e], strict=True):
            torch.testing.assert_close(p[e], q)
            torch.testing.assert_close(ours.state[p]["exp_avg_sq"][e], theirs[e].state[q]["exp_avg_sq"])
            assert ours.state[p]["step"][e] == theirs[e].state[q]["step"]


def test_absent_expert_is_not_moved():
    params = make(2)
    optimizer = ExpertAdamW(params, lr=0.1)
    for _ in range(2):
        before = [p[1].detach().clone() for p in params]
        for p in params:
            p.grad = torch.zeros_like(p)
            p.grad[0] = 1.0
        optimizer.step()
        assert all(torch.equal(p[1], b) for p, b in zip(params, before, strict=True))


def test_state_is_resumed():
    params, copies = make(2), make(2)
    first, second = ExpertAdamW(params, lr=0.1), ExpertAdamW(copies, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    first.step()
    for p, q in zip(params, copies, strict=True):
        q.data, q.grad = p.detach().clone(), p.grad.clone()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    first.step()
    second.step()
    for p, q in zip(params, copies, strict=True):
        assert torch.equal(p, q)


def test_parameters_of_one_bank_only():
    with pytest.raises(ValueError, match="one number of experts"):
        ExpertAdamW([nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(3, 3))])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_expert_without_a_finite_gradient_is_dropped_alone(bad):
    """Its gradient in every parameter goes; the others move as if it had been absent."""

    def moved(spoil: bool) -> tuple[list[torch.Tensor], tuple[list[int], torch.Tensor]]:
        params = [nn.Parameter(torch.ones(3, 2, 4)), nn.Parameter(torch.ones(3, 4))]
        optimizer = ExpertAdamW(params, lr=0.1, max_grad_norm=1.0)
        for p in params:
            p.grad = torch.full_like(p, 0.5)
            if not spoil:
                p.grad[1] = 0.0
        if spoil:
            params[1].grad[1, 2] = bad
        dropped = optimizer.drop_broken()
        optimizer.step()
        return [p.detach() for p in params], dropped

    spoilt, dropped = moved(True)
    absent, none = moved(False)
    assert (dropped[0], none[0]) == ([1], []) and dropped[1] == none[1] == pytest.approx((2 * 12 * 0.5**2) ** 0.5)
    assert all(torch.equal(a, b) for a, b in zip(spoilt, absent, strict=True))
    assert all((p[1] == 1).all() and (p[0] != 1).all() for p in spoilt)


def test_gradients_that_changed_since_they_were_looked_at_are_looked_at_again():
    params = [nn.Parameter(torch.ones(2, 3, 4)) for _ in range(2)]
    moved = []
    for p, looks in zip(params, (True, False), strict=True):
        optimizer = ExpertAdamW([p], lr=0.1, max_grad_norm=1.0)
        p.grad = torch.full_like(p, 0.01)
        if looks:
            optimizer.drop_broken()
        p.grad.mul_(torch.tensor([1000.0, 1.0])[:, None, None])  # the first expert's must be clipped now
        optimizer.step()
        moved.append(p.grad.clone())
    torch.testing.assert_close(*moved)
    assert moved[0][0].norm() == pytest.approx(1.0, rel=1e-4)


def test_nothing_is_left_where_every_expert_is_broken():
    p = nn.Parameter(torch.ones(2, 3))
    optimizer = ExpertAdamW([p])
    assert optimizer.drop_broken() == ([], 0.0)
    p.grad = torch.full_like(p, torch.nan)
    assert optimizer.drop_broken() == ([0, 1], 0.0)

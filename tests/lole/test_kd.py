import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn import functional as F

from espnet_lole.lole.kd import cosine_loss, taught_token_costs
from espnet_lole.whisper import loss as output
from espnet_lole.whisper.loss import frozen_token_costs


def divergences(student, teacher, temperature):
    """Of scores (N, V), which the identity as output matrix leaves as they are."""
    wanted = torch.zeros(len(student), dtype=torch.long)
    return taught_token_costs(student, teacher, torch.eye(student.shape[1]), wanted, temperature)[2]


def test_equal_states_and_scores_cost_exactly_nothing():
    states, scores = torch.randn(3, 5, 8), 10 * torch.randn(7, 100)
    assert cosine_loss(states, states.clone(), None)[0] == 0.0
    assert not divergences(scores, scores.clone(), 2.0).any()


def test_cosine_over_valid_positions():
    student, teacher = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    teacher[1, 2:] = 1e6
    total, count = cosine_loss(student, teacher, mask)
    cosines = torch.stack([F.cosine_similarity(s, t, dim=0) for s, t in zip(student[mask], teacher[mask], strict=True)])
    torch.testing.assert_close(total, (1 - cosines).sum())
    assert count == 6
    assert cosine_loss(student, teacher, None)[1] == 8


@pytest.mark.parametrize("at_once", [1, 60, output.SCORES_AT_ONCE])
def test_js_is_that_of_scipy_and_bounded(at_once, monkeypatch):
    monkeypatch.setattr(output, "SCORES_AT_ONCE", at_once)
    student, teacher = 3 * torch.randn(6, 50), 3 * torch.randn(6, 50)
    p, q = (scores.div(2.0).softmax(-1).double().numpy() for scores in (student, teacher))
    distances = torch.tensor(jensenshannon(p, q, axis=1), dtype=torch.float32)  # the roots of the divergences
    torch.testing.assert_close(divergences(student, teacher, 2.0), 4 * distances**2)
    apart = divergences(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]), 1.0)
    torch.testing.assert_close(apart, torch.tensor([math.log(2)]))


def test_gradients_do_not_depend_on_accumulation():
    student, teacher = torch.randn(4, 3, 8, requires_grad=True), torch.randn(4, 3, 8)
    total, count = cosine_loss(student, teacher, None)
    (total / count).backward()
    whole, student.grad = student.grad, None
    for half in (slice(0, 2), slice(2, 4)):
        (cosine_loss(student[half], teacher[half], None)[0] / count).backward()
    torch.testing.assert_close(student.grad, whole)


@pytest.mark.parametrize("at_once", [1, 60, output.SCORES_AT_ONCE])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_costs_of_taught_tokens_and_their_gradient_are_those_of_autograd(at_once, dtype, tolerance, monkeypatch):
    """The teacher knows the first 5 of 7 tokens."""
    monkeypatch.setattr(output, "SCORES_AT_ONCE", at_once)
    states, taught, weight = torch.randn(7, 8, requires_grad=True), torch.randn(5, 8), torch.randn(30, 8).to(dtype)
    wanted, of_costs, of_divergences = torch.randint(30, (7,)), torch.rand(7), torch.rand(5)
    costs, hits, found = taught_token_costs(states, taught, weight, wanted, 2.0)
    (costs @ of_costs + found @ of_divergences).backward()
    ours, states.grad = states.grad, None
    student, teacher = ((x.to(dtype) @ weight.T).float() for x in (states, taught))
    p, q = (student[:5] / 2).softmax(-1), (teacher / 2).softmax(-1)
    mean = (p + q) / 2
    expected = 2 * (p * (p / mean).log() + q * (q / mean).log()).sum(-1)
    (F.cross_entropy(student, wanted, reduction="none") @ of_costs + expected @ of_divergences).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, states.grad, atol=tolerance, rtol=tolerance)
    assert all(map(torch.equal, (costs, hits), frozen_token_costs(states, weight, wanted)))


def test_nothing_of_the_size_of_the_scores_is_kept():
    kept = []
    states, weight = torch.randn(40, 4, requires_grad=True), torch.randn(1000, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        taught_token_costs(states, torch.randn(30, 4), weight, torch.zeros(40, dtype=torch.long), 1.0)
    assert sum(kept) == 70 * 4

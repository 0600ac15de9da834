import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn import functional as F

from espnet_lole.backbone import output
from espnet_lole.distill.losses import cosine_loss, js_loss


def test_equal_states_and_scores_cost_exactly_nothing():
    states, scores = torch.randn(3, 5, 8), 10 * torch.randn(7, 100)
    assert cosine_loss(states, states.clone(), None)[0] == 0.0
    assert js_loss(scores, scores.clone(), 2.0)[0] == 0.0


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
    total, count = js_loss(student, teacher, 2.0)
    p, q = (scores.div(2.0).softmax(-1).double().numpy() for scores in (student, teacher))
    distances = jensenshannon(p, q, axis=1)  # the root of the divergence
    torch.testing.assert_close(total, torch.tensor(4 * (distances**2).sum(), dtype=torch.float32))
    assert count == 6
    apart, _ = js_loss(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]), 1.0)
    torch.testing.assert_close(apart, torch.tensor(math.log(2)))


def test_gradients_do_not_depend_on_accumulation():
    student, teacher = torch.randn(4, 3, 8, requires_grad=True), torch.randn(4, 3, 8)
    total, count = cosine_loss(student, teacher, None)
    (total / count).backward()
    whole, student.grad = student.grad, None
    for half in (slice(0, 2), slice(2, 4)):
        (cosine_loss(student[half], teacher[half], None)[0] / count).backward()
    torch.testing.assert_close(student.grad, whole)


@pytest.mark.parametrize("at_once", [1, 60, output.SCORES_AT_ONCE])
def test_gradient_of_js_is_that_of_autograd(at_once, monkeypatch):
    monkeypatch.setattr(output, "SCORES_AT_ONCE", at_once)
    student, teacher = torch.randn(5, 30, requires_grad=True), torch.randn(5, 30)
    total, _ = js_loss(student, teacher, 2.0)
    (3 * total).backward()
    ours, student.grad = student.grad, None
    p, q = (student / 2).softmax(-1), (teacher / 2).softmax(-1)
    mean = (p + q) / 2
    plain = 2 * (p * (p / mean).log() + q * (q / mean).log()).sum()
    torch.testing.assert_close(total, plain)
    (3 * plain).backward()
    torch.testing.assert_close(ours, student.grad)

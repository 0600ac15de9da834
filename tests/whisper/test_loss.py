import pytest
import torch
from torch.nn import functional as F

from espnet_lole.whisper import loss as output
from espnet_lole.whisper.loss import frozen_token_costs, token_costs


@pytest.mark.parametrize("at_once", [1, 120, output.SCORES_AT_ONCE])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_costs_and_gradients_are_those_of_autograd(at_once, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(output, "SCORES_AT_ONCE", at_once)
    weight, wanted, weights = torch.randn(50, 8).to(dtype), torch.randint(50, (7,)), torch.rand(7)
    states = torch.randn(7, 8, requires_grad=True)
    costs, hits = frozen_token_costs(states, weight, wanted)
    (costs * weights).sum().backward()
    ours, states.grad = states.grad, None
    scores = (states.to(dtype) @ weight.T).float()
    expected = F.cross_entropy(scores, wanted, reduction="none")
    (expected * weights).sum().backward()
    torch.testing.assert_close(costs, expected)
    torch.testing.assert_close(ours, states.grad, atol=tolerance, rtol=tolerance)
    assert torch.equal(hits, (scores.argmax(-1) == wanted).float())
    assert all(map(torch.equal, token_costs(scores, wanted), (expected, hits)))


def test_nothing_of_the_size_of_the_scores_is_kept():
    kept = []
    states, weight = torch.randn(40, 4, requires_grad=True), torch.randn(1000, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        costs, _ = frozen_token_costs(states, weight, torch.zeros(40, dtype=torch.long))
    assert sum(kept) == states.numel()
    with torch.no_grad():
        assert torch.equal(frozen_token_costs(states, weight, torch.zeros(40, dtype=torch.long))[0], costs)

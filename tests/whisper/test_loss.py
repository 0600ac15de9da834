import pytest
import torch
from torch.nn import functional as F

from espnet_lole.whisper.loss import token_cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_accuracy_are_those_of_torch_in_float32(dtype):
    logits, labels = 3 * torch.randn(40, 50).to(dtype), torch.randint(50, (40,))
    labels[:20] = logits[:20].argmax(-1)
    loss, correct = token_cross_entropy(logits, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels, reduction="none"))
    assert torch.equal(correct, (logits.argmax(-1) == labels).float()) and 20 <= correct.sum() < 40


def test_gradients_are_those_of_finite_differences():
    logits = torch.randn(4, 6, dtype=torch.double, requires_grad=True)
    labels = torch.tensor([0, 5, 2, 2])
    token_cross_entropy(logits, labels)[0].sum().backward()
    expected = (logits.detach().softmax(-1) - F.one_hot(labels, 6)).float()
    torch.testing.assert_close(logits.grad.float(), expected)

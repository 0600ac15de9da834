import torch

from espnet_lole.train.distributed_mean import distributed_means


def test_one_process_takes_plain_means():
    x = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    means = distributed_means({"a": (x.sum(), torch.tensor(3.0)), "b": (0 * x.sum(), torch.tensor(0.0))}, 3)
    assert means.stats["a"] == 3.0 and means.stats["b"].isnan() and means.losses["b"] == 0.0 and means.weight == 3
    loss = means.losses["a"]
    loss *= 2.0  # as ESPnet's trainer does
    loss.backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 2 / 3))

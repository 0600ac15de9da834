import pytest
import torch
from compress import BYTES, METHODS

E, R, IN, OUT = 3, 4, 12, 10


@pytest.fixture
def factors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(E, R, IN, generator=generator), torch.randn(E, OUT, R, generator=generator)


def test_svd_is_the_truncated_svd_of_each_update(factors):
    a, b = METHODS["svd"](*factors, 2)
    assert a.shape == (E, 2, IN) and b.shape == (E, OUT, 2)
    u, s, vh = torch.linalg.svd(factors[1] @ factors[0])
    torch.testing.assert_close(b @ a, (u[..., :2] * s[:, None, :2]) @ vh[:, :2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["svd", "basis"])
def test_enough_rank_changes_nothing(method, factors):
    a, b = METHODS[method](*factors, {"svd": R, "basis": E * R}[method])
    torch.testing.assert_close(b @ a, factors[1] @ factors[0], atol=1e-4, rtol=1e-4)


def test_basis_is_shared_and_the_best_on_either_side(factors):
    a, b = METHODS["basis"](*factors, 5)
    torch.testing.assert_close(a[0], a[2])
    updates = factors[1] @ factors[0]  # (E, OUT, IN)
    u = torch.linalg.svd(updates.transpose(0, 1).flatten(1))[0][:, :5]
    v = torch.linalg.svd(updates.flatten(0, 1))[2][:5]
    torch.testing.assert_close(b @ a, u @ u.T @ updates @ v.T @ v, atol=1e-4, rtol=1e-4)


def test_int8_is_off_by_half_a_step_at_most(factors):
    a, b = METHODS["int8"](*factors, R)
    for made, exact, axis in ((a, factors[0], -1), (b, factors[1], 1)):
        step = exact.abs().amax(axis, keepdim=True) / 127
        assert ((made - exact).abs() <= 0.6 * step).all() and (made != exact).any()
        assert made.unique().numel() <= 255 * made.numel() / made.shape[axis]
    zero = METHODS["int8"](torch.zeros(E, R, IN), torch.zeros(E, OUT, R), R)
    assert not any(x.any() for x in zero)


def test_bytes_are_those_of_the_numbers():
    assert BYTES["svd"](E, 2, IN, OUT) == 4 * (2 * IN + 2 * OUT)
    assert BYTES["basis"](E, 5, IN, OUT) * E == pytest.approx(4 * (5 * IN + 5 * OUT + E * 5 * 5))
    assert BYTES["int8"](E, R, IN, OUT) == R * IN + R * OUT + 2 * (R + R)

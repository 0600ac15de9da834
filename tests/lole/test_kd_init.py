import pytest
import torch
from conftest import random_experts, tiny_whisper

from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.kd_init import energy_by_layer, start_student, truncated_average
from espnet_lole.whisper.model import Backbone


@pytest.mark.parametrize(("experts", "rank", "shape"), [(8, 4, (48, 64)), (3, 16, (40, 20)), (2, 5, (8, 9))])
def test_equal_to_the_truncated_svd_of_the_whole_matrix(experts, rank, shape):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(experts, rank, shape[1], generator=generator)
    b = torch.randn(experts, shape[0], rank, generator=generator) / shape[0]
    weights = torch.rand(experts, generator=generator)
    whole = sum(w * y @ x for w, x, y in zip(weights, a, b, strict=True))
    u, s, vh = torch.linalg.svd(whole, full_matrices=False)
    for k in (1, 7, 1000):
        small_a, small_b, energy = truncated_average(a, b, weights, k)
        nearest = u[:, :k] * s[:k] @ vh[:k]
        torch.testing.assert_close(small_b @ small_a, nearest, atol=1e-5, rtol=1e-5)
        assert energy == pytest.approx(float(s[:k].square().sum() / s.square().sum()), abs=1e-5)


def test_a_student_of_full_rank_is_the_average_of_the_experts(speech):
    model = tiny_whisper()
    experts = random_experts(ExpertBank(model, ["de", "en"], ExpertConfig(rank=3, alpha=6.0)))
    student = ExpertBank(model, ["student"], ExpertConfig(rank=8, alpha=4.0))
    kept = start_student(student, experts)
    assert min(kept.values()) == pytest.approx(1.0)
    backbone = Backbone(model).eval()
    with torch.no_grad(), student.routed(torch.zeros(4, dtype=torch.long)):
        own = backbone.encode(*speech).states
    half = torch.full((4, 2), 0.5)
    with torch.no_grad(), experts.routed(torch.tensor([[0, 1]]).expand(4, 2), half):
        theirs = backbone.encode(*speech).states
    torch.testing.assert_close(own, theirs, atol=1e-4, rtol=1e-4)


def test_spare_ranks_can_still_learn():
    """B of the ranks beyond the experts' is zero, A is not: their gradient is."""
    model = tiny_whisper()
    experts = random_experts(ExpertBank(model, ["de"], ExpertConfig(rank=2, alpha=4.0)))
    student = ExpertBank(model, ["student"], ExpertConfig(rank=6, alpha=12.0))
    start_student(student, experts)
    layer = student.layers["model.encoder.layers.0.fc1"]
    assert layer.lora_B[0, :, 2:].abs().sum() == 0 and layer.lora_A[0, 2:].abs().min() > 0


def test_other_targets_are_refused():
    model = tiny_whisper()
    experts = ExpertBank(model, ["de"], ExpertConfig(rank=2))
    student = ExpertBank(model, ["student"], ExpertConfig(rank=2, targets=("fc1",)))
    with pytest.raises(ValueError, match="expected a student on the linears of the experts"):
        start_student(student, experts)


def test_energy_of_a_layer_is_that_of_the_average_of_its_linears():
    experts = random_experts(ExpertBank(tiny_whisper(), ["de", "en"], ExpertConfig(rank=3, alpha=6.0, targets=("fc1", "k_proj"))))
    shares = energy_by_layer(experts)
    assert list(shares) == ["enc1", "enc2", "enc3", "dec1", "dec2"]
    wanted = []
    for linear in ("fc1", "self_attn.k_proj"):
        layer = experts.layers[f"model.encoder.layers.1.{linear}"]
        s = torch.linalg.svdvals((layer.lora_B @ layer.lora_A).mean(0))[:6]
        wanted.append(s.square().cumsum(0) / s.square().sum())
    torch.testing.assert_close(shares["enc2"], torch.stack(wanted).mean(0), atol=1e-4, rtol=1e-4)

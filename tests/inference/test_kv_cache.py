import pytest
import torch
from conftest import random_experts, tiny_whisper

from espnet_lole.inference.kv_cache import ReplayedSteps, Steps
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.whisper.model import Backbone, Encoded


@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_steps_in_fixed_memory_are_those_in_growing_memory(speech, beams):
    """With the recorder that a CPU has: the step itself; and where the memory must be doubled twice."""
    backbone = Backbone(tiny_whisper()).eval()
    bank = random_experts(ExpertBank(backbone.model, ["de", "en"], ExpertConfig(rank=8)))
    index = torch.tensor([0, 1, 1, 0])
    with bank.routed(index):
        encoded = backbone.encode(*speech)
    rows = Encoded(*(x.repeat_interleave(beams, 0) for x in (encoded.states, encoded.mask)))
    recorded = []
    prompts = torch.tensor([[50258, 50259, 50359, 50363]]).expand(4 * beams, -1)
    both = Steps(backbone, rows), ReplayedSteps(backbone, rows, 17, 6, lambda step: recorded.append(step) or step)
    generator = torch.Generator().manual_seed(0)
    with bank.routed_steps(index.repeat_interleave(beams)):
        found = [[steps.start(prompts)] for steps in both]
        for _ in range(13):
            tokens = torch.randint(50000, (4 * beams, 1), generator=generator)
            within = torch.randint(beams, (4 * beams,), generator=generator)
            origin = within + beams * (torch.arange(4 * beams) // beams) if beams > 1 else None
            for steps, scores in zip(both, found, strict=True):
                scores.append(steps.follow(tokens, origin))
    for growing, fixed in zip(*found, strict=True):
        torch.testing.assert_close(growing, fixed, atol=1e-4, rtol=1e-4)
    assert len(recorded) == 3

import pytest
import torch
from conftest import random_experts

from espnet_lole.inference.kv_cache import DecoderSteps, ReplayedSteps
from espnet_lole.whisper.model import Encoded


@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_steps_in_fixed_memory_equal_those_in_growing_memory(speech, beams):
    """Without a CUDA graph, the recorder returns the step itself; the memory is doubled twice."""
    experts = random_experts(("de", "en"), rank=8)
    index = torch.tensor([0, 1, 1, 0])
    with experts.activate(index):
        encoded = experts.whisper.encode(*speech)
    rows = Encoded(*(x.repeat_interleave(beams, 0) for x in (encoded.states, encoded.mask)))
    recorded = []
    prompts = torch.tensor([[50258, 50259, 50359, 50363]]).expand(4 * beams, -1)
    growing = DecoderSteps(experts.whisper, rows)
    fixed = ReplayedSteps(experts.whisper, rows, 17, 6, lambda step: recorded.append(step) or step)
    generator = torch.Generator().manual_seed(0)
    with experts.activate(index.repeat_interleave(beams)):
        pairs = [(growing.prefill(prompts), fixed.prefill(prompts))]
        for _ in range(13):
            tokens = torch.randint(50000, (4 * beams, 1), generator=generator)
            within = torch.randint(beams, (4 * beams,), generator=generator)
            origin = within + beams * (torch.arange(4 * beams) // beams) if beams > 1 else None
            pairs.append((growing.step(tokens, origin), fixed.step(tokens, origin)))
    for expected, logits in pairs:
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert len(recorded) == 3

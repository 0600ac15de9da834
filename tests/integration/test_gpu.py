"""A GPU computes what the CPU does; skipped where there is none."""

import copy

import pytest
import torch
from conftest import random_experts, tiny_whisper

from espnet_lole.backbone.tokens import WhisperTokens
from espnet_lole.backbone.whisper import Backbone
from espnet_lole.decode.search import SearchConfig
from espnet_lole.decode.transcriber import ExpertTranscriber, MoLETranscriber
from espnet_lole.espnet_model import ESPnetExpertModel
from espnet_lole.experts.bank import ExpertBank, ExpertConfig
from espnet_lole.experts.optimizer import ExpertAdamW
from espnet_lole.fusion.layers import FusionConfig
from espnet_lole.fusion.mole import MoLE
from espnet_lole.router.classifier import ClassifierConfig
from espnet_lole.router.routing import RoutingConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LANGS = ("de", "en", "zh")
SEARCH = SearchConfig(beam_size=2, maxlenratio=0.2)
TOKENS = WhisperTokens(51865)


def trained_step(speech, device, precision, langs):
    """Loss, gradients and moved factors of a training step, as float32 on the CPU."""
    backbone = Backbone(tiny_whisper(), precision=precision).requires_grad_(False)
    bank = random_experts(ExpertBank(backbone.model, LANGS, ExpertConfig(rank=8, alpha=16.0)))
    model = ESPnetExpertModel(backbone, bank, TOKENS).to(device).train()
    params = [p for p in model.parameters() if p.requires_grad]
    data = {
        "speech": speech[0], "speech_lengths": speech[1], "lang": torch.tensor(langs)[:, None],
        "text": torch.arange(1, 21).view(4, 5), "text_lengths": torch.tensor([5, 3, 4, 5]),
    }  # fmt: skip
    loss = model(**{name: x.to(device) for name, x in data.items()})[0]
    loss.backward()
    grads = [p.grad.clone().float().cpu() for p in params]
    ExpertAdamW(params, lr=0.01, max_grad_norm=1.0).step()
    return loss.detach().float().cpu(), grads, [p.detach().float().cpu() for p in params]


@pytest.mark.parametrize("langs", [[0, 0, 2, 2], [2, 0, 0, 2], [1, 1, 1, 1]])
def test_a_step_of_training(speech, langs):
    expected = trained_step(speech, "cpu", torch.float32, langs)
    torch.testing.assert_close(trained_step(speech, "cuda", torch.float32, langs), expected, atol=2e-3, rtol=2e-3)
    loss, grads, _ = trained_step(speech, "cuda", torch.bfloat16, langs)
    torch.testing.assert_close(loss, expected[0], atol=0.05, rtol=0.02)
    flat = [torch.cat([grad.flatten() for grad in many]) for many in (grads, expected[1])]
    assert torch.cosine_similarity(*flat, dim=0) > 0.98
    absent = set(range(3)) - set(langs)
    assert not any(grad[row].any() for grad in grads for row in absent)


def test_experts_and_mole_find_the_same_texts(speech):
    backbone = Backbone(tiny_whisper()).eval().requires_grad_(False)
    bank = random_experts(ExpertBank(backbone.model, LANGS, ExpertConfig(rank=4, alpha=8.0)))
    torch.manual_seed(0)
    mole = MoLE(backbone, bank, FusionConfig(2), ClassifierConfig(hidden=8))
    torch.nn.init.normal_(mole.classifier.mlp[-1].weight)
    rows, langs = [row[:n] for row, n in zip(*speech, strict=True)], ["zh", "de", "en", "zh"]

    def found(mole):
        experts = ExpertTranscriber(mole.backbone, TOKENS, mole.bank, SEARCH)
        given = [t.hypothesis.tokens for t in experts(rows, langs)]
        merged = MoLETranscriber(mole, TOKENS, SEARCH, RoutingConfig())
        return given, [(t.lang, t.hypothesis.tokens) for t in merged(rows, None)]

    on_gpu = copy.deepcopy(mole)
    for part in (on_gpu.backbone, on_gpu.fusion, on_gpu.classifier):
        part.to("cuda").eval()
    mole.classifier.eval()
    assert found(on_gpu) == found(mole)

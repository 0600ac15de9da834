"""A GPU computes what the CPU does; skipped where there is none."""

import pytest
import torch
from conftest import random_experts, tiny_whisper

from espnet_lole.espnet_model import ESPnetExpertModel
from espnet_lole.inference.kv_cache import ReplayedSteps, Steps
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import ExpertTranscriber, MoLETranscriber
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.lole.mole import MoLE
from espnet_lole.lole.routing import RoutingConfig
from espnet_lole.train.optimizer import ExpertAdamW
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LANGS = ("de", "en", "zh")
TOKENS = WhisperTokens(51865)


def gradients(speech, device, precision, langs):
    """Loss and gradients of a training step, as float32 on the CPU."""
    backbone = Backbone(tiny_whisper(), precision=precision).requires_grad_(False)
    bank = random_experts(ExpertBank(backbone.model, LANGS, ExpertConfig(rank=8, alpha=16.0)))
    model = ESPnetExpertModel(backbone, bank, TOKENS).to(device).train()
    data = {
        "speech": speech[0], "speech_lengths": speech[1], "lang": torch.tensor(langs)[:, None],
        "text": torch.arange(1, 21).view(4, 5), "text_lengths": torch.tensor([5, 3, 4, 5]),
    }  # fmt: skip
    loss = model(**{name: x.to(device) for name, x in data.items()})[0]
    loss.backward()
    grads = [p.grad.flatten(1).float().cpu() for p in model.parameters() if p.requires_grad]
    return loss.item(), torch.cat(grads, 1)


@pytest.mark.parametrize("langs", [[0, 0, 2, 2], [2, 0, 0, 2], [1, 1, 1, 1]])
@pytest.mark.parametrize(("precision", "likeness"), [(torch.float32, 0.9999), (torch.bfloat16, 0.98)])
def test_gradients_of_a_training_step(speech, langs, precision, likeness):
    loss, expected = gradients(speech, "cpu", torch.float32, langs)
    found, grads = gradients(speech, "cuda", precision, langs)
    assert found == pytest.approx(loss, rel=0.01)
    for expert in set(langs):
        assert torch.cosine_similarity(grads[expert], expected[expert], dim=0) > likeness
    assert not any(grads[expert].any() for expert in set(range(3)) - set(langs))


def test_the_optimizer_moves_as_on_the_cpu():
    generator, moved = torch.Generator().manual_seed(0), []
    grads = [torch.randn(3, 4, 5, generator=generator) for _ in range(4)]
    grads[1][2] = grads[2][0] = 0.0  # absent experts
    for device in ("cpu", "cuda"):
        params = [torch.nn.Parameter(torch.ones(3, 4, 5, device=device)) for _ in range(2)]
        optimizer = ExpertAdamW(params, lr=0.01, max_grad_norm=1.0)
        for grad in grads:
            for p in params:
                p.grad = grad.clone().to(device)
            optimizer.step()
        moved.append([p.detach().cpu() for p in params])
    torch.testing.assert_close(*moved)


def found_texts(speech, device, precision, search):
    """Of experts that are told the language, and of MoLE that finds it."""
    backbone = Backbone(tiny_whisper(), precision=precision).eval().requires_grad_(False)
    bank = random_experts(ExpertBank(backbone.model, LANGS, ExpertConfig(rank=8, alpha=16.0)))
    torch.manual_seed(0)
    mole = MoLE(backbone, bank, FusionConfig(2), ClassifierConfig(hidden=8))
    torch.nn.init.normal_(mole.classifier.mlp[-1].weight)
    for part in (backbone, mole.fusion, mole.classifier):
        part.to(device).eval()
    rows, langs = [row[:n] for row, n in zip(*speech, strict=True)], ["zh", "de", "en", "zh"]
    given = [t.hypothesis.tokens for t in ExpertTranscriber(backbone, TOKENS, bank, search)(rows, langs)]
    found = MoLETranscriber(mole, TOKENS, search, RoutingConfig())(rows, None)
    return given, [(t.lang, t.hypothesis.tokens) for t in found]


@pytest.mark.parametrize("beam", [1, 2])
def test_experts_and_mole_find_the_same_texts(speech, beam):
    search = SearchConfig(beam_size=beam, maxlenratio=0.2)
    expected = found_texts(speech, "cpu", torch.float32, search)
    assert max(len(tokens) for tokens in expected[0]) > 3  # steps were replayed
    assert found_texts(speech, "cuda", torch.float32, search) == expected


def test_replayed_steps_find_what_single_steps_do(speech, monkeypatch):
    """In bfloat16 too, where the CPU rounds otherwise; and in memory that must be doubled."""
    search, found = SearchConfig(beam_size=2, maxlenratio=0.4), []
    for make in (
        ReplayedSteps,
        lambda backbone, rows, longest: ReplayedSteps(backbone, rows, longest, room=7),
        lambda backbone, rows, _: Steps(backbone, rows),
    ):
        monkeypatch.setattr("espnet_lole.inference.search.ReplayedSteps", make)
        found.append(found_texts(speech, "cuda", torch.bfloat16, search))
    assert found[0] == found[1] == found[2]

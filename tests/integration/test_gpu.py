"""A GPU computes what the CPU does; skipped where there is none."""

import pytest
import torch
from conftest import random_experts, tiny_whisper

from espnet_lole.espnet_model import ESPnetExpertsModel
from espnet_lole.inference.kv_cache import DecoderSteps, ReplayedSteps
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import ExpertTranscriber, MoLETranscriber
from espnet_lole.lole.language_classifier import ClassifierConfig
from espnet_lole.lole.mole import FusionConfig, MoLE, RoutingConfig
from espnet_lole.train.optimizer import ExpertAdamW
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LANGS = ("de", "en", "zh")
TOKENIZER = WhisperTokenizer(51865)


def gradients(speech, device, precision, langs):
    """Return the loss of a training step and each expert's gradient, as float32 on the CPU; None if it is absent."""
    whisper = Whisper(tiny_whisper(), precision=precision).requires_grad_(False)
    model = ESPnetExpertsModel(random_experts(LANGS, rank=8, alpha=16.0, whisper=whisper), LANGS).to(device).train()
    data = {
        "speech": speech[0], "speech_lengths": speech[1], "lang": torch.tensor(langs)[:, None],
        "text": torch.arange(1, 21).view(4, 5), "text_lengths": torch.tensor([5, 3, 4, 5]),
    }  # fmt: skip
    loss = model(**{name: x.to(device) for name, x in data.items()})[0]
    loss.backward()
    grads = {}
    for lang, params in model.experts.parameters_of_experts().items():
        own = [p.grad.flatten().float().cpu() for p in params if p.grad is not None]
        grads[lang] = torch.cat(own) if own else None
    return loss.item(), grads


@pytest.mark.parametrize("langs", [[0, 0, 2, 2], [2, 0, 0, 2], [1, 1, 1, 1]])
@pytest.mark.parametrize(("precision", "likeness"), [(torch.float32, 0.9999), (torch.bfloat16, 0.98)])
def test_gradients_of_a_training_step(speech, langs, precision, likeness):
    expected_loss, expected = gradients(speech, "cpu", torch.float32, langs)
    loss, grads = gradients(speech, "cuda", precision, langs)
    assert loss == pytest.approx(expected_loss, rel=0.01)
    for i, lang in enumerate(LANGS):
        if i in langs:
            assert torch.cosine_similarity(grads[lang], expected[lang], dim=0) > likeness
        else:
            assert grads[lang] is None or not grads[lang].any()


def test_the_optimizer_moves_as_on_the_cpu():
    generator, moved = torch.Generator().manual_seed(0), []
    grads = [torch.randn(3, 4, 5, generator=generator) for _ in range(4)]
    absent = {(1, 2), (2, 0)}  # (step, expert)
    for device in ("cpu", "cuda"):
        params = {lang: [torch.nn.Parameter(torch.ones(4, 5, device=device)) for _ in range(2)] for lang in LANGS}
        optimizer = ExpertAdamW(params, lr=0.01, max_grad_norm=1.0)
        for step, grad in enumerate(grads):
            for i, lang in enumerate(LANGS):
                for p in params[lang]:
                    p.grad = None if (step, i) in absent else grad[i].clone().to(device)
            optimizer.step()
        moved.append([p.detach().cpu() for lang in LANGS for p in params[lang]])
    torch.testing.assert_close(*moved)


def decode(speech, device, precision, search):
    """Decode with experts, which get the language, and with MoLE, which predicts it."""
    whisper = Whisper(tiny_whisper(), precision=precision).eval()
    experts = random_experts(LANGS, rank=8, alpha=16.0, whisper=whisper)
    torch.manual_seed(0)
    mole = MoLE(experts, FusionConfig(2), ClassifierConfig(hidden=8))
    torch.nn.init.normal_(mole.frontend.classifier.mlp[-1].weight)
    mole.to(device).eval()
    batch = tuple(x.to(device) for x in speech)
    given = ExpertTranscriber(experts, TOKENIZER, search)(*batch, ["zh", "de", "en", "zh"])
    predicted = MoLETranscriber(mole, TOKENIZER, search, RoutingConfig())(*batch, None)
    return [h.tokens for h in given], [(h.language, h.tokens) for h in predicted]


@pytest.mark.parametrize("beam", [1, 2])
def test_experts_and_mole_decode_the_same_texts(speech, beam):
    search = SearchConfig(beam_size=beam, maxlenratio=0.2)
    expected = decode(speech, "cpu", torch.float32, search)
    assert max(len(tokens) for tokens in expected[0]) > 3  # steps were replayed
    assert decode(speech, "cuda", torch.float32, search) == expected


def test_replayed_steps_decode_what_single_steps_do(speech, monkeypatch):
    """In bfloat16, where a CPU rounds otherwise; and in memory that must be doubled."""
    search, hypotheses = SearchConfig(beam_size=2, maxlenratio=0.4), []
    for make in (
        ReplayedSteps,
        lambda whisper, rows, longest: ReplayedSteps(whisper, rows, longest, room=7),
        lambda whisper, rows, _: DecoderSteps(whisper, rows),
    ):
        monkeypatch.setattr("espnet_lole.inference.search.ReplayedSteps", make)
        hypotheses.append(decode(speech, "cuda", torch.bfloat16, search))
    assert hypotheses[0] == hypotheses[1] == hypotheses[2]

"""Experts trained together against each trained alone by torch."""

import math

import pytest
import torch
from conftest import LANGS, TEXTS, make_batch, tiny_whisper
from espnet_models import experts_model, trained
from torch.nn import functional as F

from espnet_lole.lole.adapters import load_adapters
from espnet_lole.train.optimizer import ExpertAdamW
from espnet_lole.whisper.model import Whisper


def test_loss_is_cross_entropy_on_text_and_end_a_mean_for_each_language(speech):
    """The oracle: an utterance at a time."""
    model = experts_model()
    loss, stats, weight = model(**make_batch(model, [0, 1, 2, 3], speech))
    losses, correct = {}, {}
    for i, lang in enumerate(LANGS):
        ids = [*model.tokenizer.prompt(lang), *model.tokenizer.encode(TEXTS[i], lang), model.tokenizer.eot]
        encoded = model.whisper.encode(speech[0][i : i + 1, : speech[1][i]], speech[1][i : i + 1])
        logits = model.whisper.logits(model.whisper.decode(torch.tensor([ids[:-1]]), encoded))[0]
        labels = torch.tensor(ids[4:])
        losses.setdefault(lang, []).append(F.cross_entropy(logits[3:], labels, reduction="none"))
        correct.setdefault(lang, []).append((logits[3:].argmax(1) == labels).float())
    means = {lang: torch.cat(values).mean() for lang, values in losses.items()}
    torch.testing.assert_close(loss[0], sum(means.values()), atol=1e-3, rtol=1e-4)
    every = torch.cat([value for values in losses.values() for value in values])
    torch.testing.assert_close(stats["loss"][0], every.mean(), atol=1e-3, rtol=1e-4)
    for lang, mean in means.items():
        torch.testing.assert_close(stats[f"loss_{lang}"][0], mean.detach(), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(stats[f"acc_{lang}"][0], torch.cat(correct[lang]).mean())
    assert math.isnan(stats["loss_fr"]) and math.isnan(stats["acc_fr"])
    assert weight == 4


def test_training_together_is_training_each_alone(speech):
    """The oracle: torch's AdamW and clipping on a model of one language; an absent language does not move."""
    together = experts_model()
    alone = {lang: experts_model((lang,)) for lang in ("de", "en", "zh")}
    options = {"lr": 0.01, "eps": 1e-3}  # a larger eps: rounding does not grow to a step
    optimizer = ExpertAdamW(together.experts.parameters_of_experts(), 0.5, **options)
    optimizers = {lang: torch.optim.AdamW(trained(m).values(), **options) for lang, m in alone.items()}
    for rows in [[0, 2, 1, 3], [0, 1], [2, 3], [0, 1, 2, 3]]:
        optimizer.zero_grad()
        loss, stats, _ = together(**make_batch(together, rows, speech))
        loss.backward()
        optimizer.step()
        for lang, model in alone.items():
            if own := [i for i in rows if LANGS[i] == lang]:
                optimizers[lang].zero_grad()
                loss, _, _ = model(**make_batch(model, own, speech))
                torch.testing.assert_close(stats[f"loss_{lang}"], loss.detach(), atol=1e-3, rtol=1e-4)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained(model).values(), 0.5)
                optimizers[lang].step()
    for lang, model in alone.items():
        for name, layer in model.experts.layers.items():
            mixed = together.experts.layers[name]
            torch.testing.assert_close(mixed.lora_B[lang], layer.lora_B[lang], atol=2e-4, rtol=1e-2)
            assert mixed.lora_B[lang].any()
    untouched = experts_model().experts.layers
    for name, layer in together.experts.layers.items():
        assert torch.equal(layer.lora_A["fr"], untouched[name].lora_A["fr"]) and not layer.lora_B["fr"].any()


@pytest.mark.slow
def test_four_utterances_are_learned_by_heart(speech):
    model = experts_model(rank=16, width=64)  # wide enough for every token to be the most likely one somewhere
    optimizer = ExpertAdamW(model.experts.parameters_of_experts(), 1.0, lr=0.01)
    batch = make_batch(model, [0, 1, 2, 3], speech)
    for _ in range(80):
        optimizer.zero_grad()
        loss, stats, _ = model(**batch)
        loss.backward()
        optimizer.step()
    assert stats["acc"] == 1.0


def test_a_finished_training_leaves_adapters_of_the_given_languages(tmp_path):
    model = experts_model()
    for p in trained(model).values():
        torch.nn.init.normal_(p)
    model.save_trained(tmp_path, ["de", "zh"], "tiny")
    assert sorted(p.name for p in (tmp_path / "adapters").iterdir()) == ["de", "zh"]
    loaded = load_adapters(Whisper(tiny_whisper()), tmp_path / "adapters")
    for name, layer in loaded.layers.items():
        assert torch.equal(layer.lora_A["zh"], model.experts.layers[name].lora_A["zh"])

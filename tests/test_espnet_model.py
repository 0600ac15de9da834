import math

import numpy as np
import pytest
import torch
from conftest import LANGS, TEXTS, make_batch, tiny_whisper
from torch.nn import functional as F

from espnet_lole.config import read_conf
from espnet_lole.espnet_model import ESPnetExpertModel
from espnet_lole.lole.adapters import save_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.tasks.lole import LoLEPreprocessor, LoLETask
from espnet_lole.train.optimizer import ExpertAdamW
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens


def make_model(langs=("de", "en", "fr", "zh"), seed=0, rank=4, width=16) -> ESPnetExpertModel:
    backbone = Backbone(tiny_whisper(seed, width=width)).eval().requires_grad_(False)
    bank = ExpertBank(backbone.model, langs, ExpertConfig(rank=rank, alpha=2.0 * rank))
    return ESPnetExpertModel(backbone, bank, WhisperTokens(51865))


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def test_loss_is_cross_entropy_on_text_and_end(speech):
    """An utterance at a time through transformers' own decoder states, means by language."""
    model = make_model()
    loss, stats, weight = model(**make_batch(model, [0, 1, 2, 3], speech))
    costs, hits = {}, {}
    for i in range(4):
        ids = [*model.tokens.prompt(LANGS[i]), *model.tokens.encode(TEXTS[i], LANGS[i]), model.tokens.end]
        encoded = model.backbone.encode(speech[0][i : i + 1, : speech[1][i]], speech[1][i : i + 1])
        logits = model.backbone.logits(model.backbone.decode(torch.tensor([ids[:-1]]), encoded))[0]
        costs.setdefault(LANGS[i], []).append(F.cross_entropy(logits[3:], torch.tensor(ids[4:]), reduction="none"))
        hits.setdefault(LANGS[i], []).append((logits[3:].argmax(1) == torch.tensor(ids[4:])).float())
    means = {lang: torch.cat(c).mean() for lang, c in costs.items()}
    torch.testing.assert_close(loss, sum(means.values()), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        stats["loss"], torch.cat([c for cs in costs.values() for c in cs]).mean(), atol=1e-3, rtol=1e-4
    )
    for lang, mean in means.items():
        torch.testing.assert_close(stats[f"loss_{lang}"], mean.detach(), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(stats[f"acc_{lang}"], torch.cat(hits[lang]).mean())
    assert math.isnan(stats["loss_fr"]) and math.isnan(stats["acc_fr"])
    assert weight == 4


def test_training_together_is_training_each_alone(speech):
    """Same losses, clipping, optimizer state and weights; a language absent from a batch is not moved."""
    together = make_model()
    alone = {lang: make_model((lang,)) for lang in ("de", "en", "zh")}
    options = {"lr": 0.01, "max_grad_norm": 0.5, "eps": 1e-3}  # a larger eps: rounding is not blown up to a step
    optimizer = ExpertAdamW(trained(together), **options)
    optimizers = {lang: ExpertAdamW(trained(m), **options) for lang, m in alone.items()}
    for rows in [[0, 1, 2, 3], [0, 1], [3, 2], [0, 1, 2, 3]]:
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
                optimizers[lang].step()
    for lang, model in alone.items():
        row = together.bank.index(lang)
        for name, layer in model.bank.layers.items():
            ours = together.bank.layers[name]
            torch.testing.assert_close(ours.lora_B[row], layer.lora_B[0], atol=2e-4, rtol=1e-2)
            assert optimizer.state[ours.lora_B]["step"][row] == optimizers[lang].state[layer.lora_B]["step"][0]
    absent = together.bank.index("fr")
    assert all((layer.lora_B[absent] == 0).all() for layer in together.bank.layers.values())


def test_overfits_four_utterances(speech):
    model = make_model(rank=16, width=64)  # wide enough for every token to be the likeliest somewhere
    optimizer = ExpertAdamW(trained(model), lr=0.01, max_grad_norm=1.0)
    batch = make_batch(model, [0, 1, 2, 3], speech)
    for _ in range(80):
        optimizer.zero_grad()
        loss, stats, _ = model(**batch)
        loss.backward()
        optimizer.step()
    assert stats["acc"] == 1.0


def test_checkpoint_holds_experts_and_comes_back():
    model = make_model()
    state = model.state_dict()
    assert all(".lora_" in name or name == "backbone_fingerprint" for name in state)
    other = make_model()
    for p in trained(model):
        torch.nn.init.normal_(p)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(trained(model), trained(other), strict=True))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, "got one made on another"),
        ({"langs": ("de", "en")}, "expected a checkpoint for the languages de en"),
        ({"rank": 2}, "got another in"),
    ],
)
def test_foreign_checkpoints_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        make_model(**other).load_state_dict(make_model().state_dict())


def test_missing_tensors_are_refused():
    state = make_model().state_dict()
    state.pop(next(iter(state)))
    with pytest.raises(ValueError, match="got another in 1 tensors"):
        make_model().load_state_dict(state)


def test_preprocessor_refuses_what_cannot_train(tokens):
    preprocess = LoLEPreprocessor(True, ["de", "en"], tokens)
    ready = preprocess("u", {"speech": np.zeros(16000), "text": "ja", "lang": "en"})
    assert ready["lang"].tolist() == [1]
    with pytest.raises(ValueError, match="u: expected a language of the experts de en, got 'fr'"):
        preprocess("u", {"speech": np.zeros(16000), "text": "oui", "lang": "fr"})
    for shape in [(100,), (500_000,), (16000, 2)]:
        with pytest.raises(ValueError, match="u: expected 25 ms to 30 s"):
            preprocess("u", {"speech": np.zeros(shape), "text": "ja", "lang": "de"})


def test_utterances_of_a_language_follow_one_another_in_a_batch():
    rows = [
        (f"u{i}", {"speech": np.full(i + 2, i, np.float32), "lang": np.array([lang])})
        for i, lang in enumerate([1, 0, 1, 0])
    ]
    names, batch = LoLETask.build_collate_fn(None, True)(rows)
    assert names == ["u1", "u3", "u0", "u2"]
    assert batch["lang"][:, 0].tolist() == [0, 0, 1, 1] and batch["speech_lengths"].tolist() == [3, 5, 2, 4]
    assert batch["speech"].sum(1).tolist() == [3.0, 15.0, 0.0, 8.0]


def test_config_mistakes_are_refused():
    with pytest.raises(ValueError, match="got \\['ranks'\\]"):
        read_conf(ExpertConfig, {"ranks": 3}, "expert_conf")
    args = LoLETask.get_parser().parse_args(["--optim", "adamw", "--output_dir", "x"])
    with pytest.raises(ValueError, match="expected optim: expert_adamw"):
        LoLETask.build_optimizers(args, make_model())


def test_experts_start_from_an_adapter(tmp_path):
    model = make_model()
    torch.nn.init.normal_(model.bank.layers["model.encoder.layers.0.fc1"].lora_B)
    save_expert(model.bank, "en", tmp_path / "en", "tiny")
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    options = ["--backbone", str(tmp_path / "tiny"), "--langs", "fr", "--output_dir", "x", "--expert_conf", "rank=4"]
    built = LoLETask.build_model(LoLETask.get_parser().parse_args([*options, "--expert_start", str(tmp_path / "en")]))
    for name, layer in built.bank.layers.items():
        theirs = model.bank.layers[name]
        torch.testing.assert_close(layer.lora_A[0], theirs.lora_A[1])
        torch.testing.assert_close(layer.scale * layer.lora_B[0], theirs.scale * theirs.lora_B[1])

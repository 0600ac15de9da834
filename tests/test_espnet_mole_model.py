"""MoLE's training: text through the expert of the true language, and the weighted loss of the classifier."""

import pytest
import torch
from conftest import make_batch, random_experts, run_frontend
from espnet_models import CODES, mole_model, trained
from safetensors.torch import load_file
from torch.nn import functional as F

from espnet_lole.espnet_model import ESPnetExpertsModel
from espnet_lole.lole.mole_weights import trained_state


def test_loss_is_that_of_the_text_and_the_weighted_loss_of_the_language(speech):
    model = mole_model(lid_weight=0.25)
    torch.nn.init.normal_(model.mole.frontend.classifier.mlp[-1].weight)
    batch = make_batch(model, [0, 1, 2, 3], speech)
    loss, stats, weight = model(**batch)
    torch.testing.assert_close(loss, stats["loss_asr"] + 0.25 * stats["loss_lid"])
    torch.testing.assert_close(stats["loss"], loss.detach())
    _, logits = run_frontend(model.eval().mole, speech)
    languages = batch["lang"][:, 0]
    torch.testing.assert_close(stats["loss_lid"][0], F.cross_entropy(logits, languages))
    correct = (logits.argmax(1) == languages).float()
    assert weight == 4 and stats["lid_acc"] == correct.mean()
    assert stats["lid_acc_fr"].isnan() and stats["lid_acc_de"] == correct[languages == 0].mean()
    assert stats["fusion_de"] == pytest.approx(0.25)


def test_text_goes_through_the_expert_of_its_true_language(speech):
    """Without shared layers the loss is that of the experts."""
    model, experts = mole_model(shared_layers=0), ESPnetExpertsModel(random_experts(CODES), CODES)
    batch = make_batch(model, [0, 1, 2, 3], speech)
    torch.testing.assert_close(model(**batch)[1]["loss_asr"], experts(**batch)[1]["loss"])


def test_class_weights_are_those_of_a_weighted_mean(speech):
    model = mole_model(class_weights={"de": 3.0}).eval()
    torch.nn.init.normal_(model.mole.frontend.classifier.mlp[-1].weight)
    batch = make_batch(model, [0, 1, 2, 3], speech)
    _, logits = run_frontend(model.mole, speech)
    expected = F.cross_entropy(logits, batch["lang"][:, 0], torch.tensor([3.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(model(**batch)[1]["loss_lid"][0], expected)


def test_only_fusion_and_classifier_train(speech):
    model = mole_model()
    model(**make_batch(model, [0, 1, 2, 3], speech))[0].backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == set(trained(model))
    assert all(name.endswith(".logits") or "classifier.mlp" in name for name in with_gradient)


def test_replayed_statistics_are_of_this_epoch(speech):
    model = mole_model(replay=5)
    model(**make_batch(model, [0, 0, 0, 0], speech))
    model.start_epoch(2, 3)
    for _ in range(2):
        model(**make_batch(model, [3, 3, 3, 3], speech))
        assert (model.memory.draw(20)[1] == CODES.index("zh")).all()
    assert model.mole.frontend.classifier.norm.count == 12


def test_replayed_statistics_count_in_the_loss_of_training(speech, monkeypatch):
    model = mole_model(replay=3)
    torch.nn.init.normal_(model.mole.frontend.classifier.mlp[-1].weight)
    batch, rows = make_batch(model, [0, 1, 2, 3], speech), torch.tensor([3, 0, 0])
    monkeypatch.setattr(torch, "randint", lambda most, size, device: rows[: size[0]] if most == 4 else None)
    trained_loss, tested_loss = model(**batch)[1]["loss_lid"][0], model.eval()(**batch)[1]["loss_lid"][0]
    (_, logits), languages = run_frontend(model.mole, speech), batch["lang"][:, 0]
    drawn = torch.cat([torch.arange(4), rows])
    torch.testing.assert_close(trained_loss, F.cross_entropy(logits[drawn], languages[drawn]))
    torch.testing.assert_close(tested_loss, F.cross_entropy(logits, languages))


def test_languages_are_learned_by_heart(speech):
    model = mole_model()
    optimizer = torch.optim.Adam(trained(model).values(), lr=0.03)
    batch = make_batch(model, [0, 1, 3], speech)
    first = model(**batch)[0].item()
    for _ in range(12):
        optimizer.zero_grad()
        loss, stats, _ = model(**batch)
        loss.backward()
        optimizer.step()
    assert stats["lid_acc"] == 1.0 and loss.item() < first


def test_a_finished_training_leaves_what_trained_and_the_fingerprints(tmp_path):
    model = mole_model()
    model.save_trained(tmp_path, CODES, "tiny")
    state, expected = load_file(tmp_path / "mole.safetensors"), trained_state(model.mole)
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    classifier = {f"classifier.{name}" for name, _ in model.mole.frontend.classifier.named_parameters()}
    norm = {f"classifier.norm.{name}" for name in ("count", "mean", "variance")}
    assert set(state) == {"fusion.logits"} | classifier | norm

"""Options of training at real sizes: recomputed layers, SpecAugment, half precision and a scaled loss."""

import pytest
import test_espnet_model
import test_espnet_mole_model
import test_espnet_student_model
import torch
from conftest import make_batch, tiny_whisper

from espnet_lole.lole.experts import hold_routes
from espnet_lole.tasks.lole import LoLETask
from espnet_lole.train.optimizer import ExpertAdamW
from espnet_lole.train.specaug import Augment
from espnet_lole.whisper.model import Backbone

SYSTEMS = {
    "experts": test_espnet_model.make_model,
    "mole": test_espnet_mole_model.make_model,
    "student": test_espnet_student_model.make_model,
}


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch)[0].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("system", SYSTEMS)
def test_recomputed_layers_give_the_same_gradients_and_keep_less(system, speech):
    model = SYSTEMS[system]()
    batch = make_batch(model, [0, 1, 2, 3], speech)
    kept = []
    results = []
    for recompute in (None, lambda: hold_routes(model)):
        model.backbone.recompute = recompute
        sizes = []

        def pack(x, sizes=sizes):
            if x.shape[-1:] != (51865,):  # scores of the vocabulary are in no layer
                sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model(**batch)[0]
        kept.append(sum(sizes))
        model.zero_grad()
        loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, grad in results[0].items():
        torch.testing.assert_close(results[1][name], grad)
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("window", ["short", "30s"])
def test_specaugment_changes_speech_in_training_alone(window, speech):
    backbone = Backbone(tiny_whisper(), window).train()
    plain = []
    backbone.embed_mel = lambda mel, frames: mel
    for augment in (None, Augment({"time_mask_width_ratio_range": [0.2, 0.3], "freq_mask_width_range": [5, 20]})):
        backbone.augment = augment
        torch.manual_seed(0)
        plain.append(backbone.embed_speech(*speech))
    assert torch.equal(backbone.eval().embed_speech(*speech), plain[0])
    changed = plain[0] != plain[1]
    assert plain[0].shape == plain[1].shape
    for row, samples in enumerate(speech[1].tolist()):
        assert changed[row, :, : samples // 160].float().mean() > 0.1
        assert not changed[row, :, samples // 160 :].any()


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected in specaug_conf keys of .*got \\['width'\\]"):
        Augment({"width": 3})
    options = ["--backbone", "x", "--langs", "de", "--output_dir", "x", "--precision", "float16"]
    with pytest.raises(ValueError, match="expected use_amp: true with precision: float16"):
        LoLETask.build_model(LoLETask.get_parser().parse_args(options))


def test_task_sets_the_options_and_gives_espnet_its_shapes(tmp_path, speech):
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    options = [
        "--backbone",
        str(tmp_path / "tiny"),
        "--langs",
        "de",
        "en",
        "zh",
        "--output_dir",
        "x",
        "--expert_conf",
        "rank=2",
    ]
    options += ["--checkpointing", "true", "--specaug_conf", "apply_time_mask=false"]
    model = LoLETask.build_model(LoLETask.get_parser().parse_args(options)).train()
    loss, stats, weight = model(**make_batch(model, [0, 1, 2, 3], speech))
    loss.backward()
    assert {tuple(x.shape) for x in (loss, weight, *stats.values())} == {(1,)}
    assert all(layer.lora_B.grad.abs().sum() > 0 for layer in model.bank.layers.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("system", SYSTEMS)
def test_espnets_autocast_around_the_models_own(system, precision, speech, monkeypatch):
    """Either, both or none: nearly the same gradients, in float32."""
    model = SYSTEMS[system]()
    batch = make_batch(model, [0, 1, 2, 3], speech)
    exact = gradients(model, batch)
    with torch.no_grad():
        model.backbone = Backbone(model.backbone.model, "short", precision)
        if system == "mole":
            model.mole.backbone = model.backbone
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch)[0]
    assert loss.dtype == torch.float32
    model.zero_grad()
    loss.backward()
    for name, grad in exact.items():
        got = model.get_parameter(name).grad
        if grad.norm() > 1e-3:
            assert torch.nn.functional.cosine_similarity(grad.flatten(), got.flatten(), dim=0) > 0.9, name


def test_a_scaled_loss_and_accumulated_batches_give_the_mean_gradient(speech):
    """As ESPnet's trainer does: each loss over the number of batches, scaled, unscaled before the step."""
    model = SYSTEMS["experts"]()
    trained = [p for p in model.parameters() if p.requires_grad]
    batches = [make_batch(model, rows, speech) for rows in ([0, 1, 3], [2, 3])]
    each = [gradients(model, batch) for batch in batches]
    optimizer = ExpertAdamW(trained, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model.zero_grad()
    for batch in batches:
        scaler.scale(model(**batch)[0] / 2).backward()
    scaler.unscale_(optimizer)
    for name, first in each[0].items():
        torch.testing.assert_close(model.get_parameter(name).grad, (first + each[1][name]) / 2, atol=1e-5, rtol=1e-3)
    scaler.step(optimizer)
    assert optimizer.state[trained[0]]["step"].tolist() == [1, 1, 0, 1]
    trained[0].grad[0, 0, 0] = torch.inf
    scaler.update()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert optimizer.state[trained[0]]["step"].tolist() == [1, 1, 0, 1]

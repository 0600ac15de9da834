"""Hooks on ESPnet's trainer, run by ESPnet's own epochs, and what a finished training leaves."""

import logging
import math
from datetime import timedelta

import pytest
import torch
import yaml
from conftest import make_batch, room_for
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter
from espnet_models import experts_model, student_model, trained

from espnet_lole.evaluation.resources import read_resources
from espnet_lole.lole.adapters import Adapter
from espnet_lole.tasks.lole import KDTask, LoLETask
from espnet_lole.train.trainer import KDTrainer, LoLETrainer, explain_errors, save_trained, write_training_resources


def parse(tmp_path, *options):
    """Return the options of a training whose dev set has German and Turkish."""
    (tmp_path / "utt2lang").write_text("a tr\nb de\nc tr\n")
    given = ["--output_dir", str(tmp_path), "--backbone", "x", "--langs", "de", "fr", "tr", "--ngpu", "0", *options]
    return LoLETask.parse_args([*given, "--valid_data_path_and_name_and_type", f"{tmp_path / 'utt2lang'},lang,text"])


def train_epoch(trainer, model, args, batches, epoch=1) -> Reporter:
    """Run one of ESPnet's epochs over these batches."""
    reporter = Reporter()
    reporter.set_epoch(epoch)
    with reporter.observe("train") as observed:
        trainer.train_one_epoch(
            model=model,
            iterator=[([], batch) for batch in batches],
            optimizers=LoLETask.build_optimizers(args, model),
            schedulers=[None],
            scaler=None,
            reporter=observed,
            summary_writer=None,
            options=trainer.build_options(args),
            distributed_option=DistributedOption(),
        )
    return reporter


@pytest.mark.parametrize(
    ("system", "figures"),
    [("experts", ["acc", "loss", "acc_de", "acc_tr", "loss_de", "loss_tr"]), ("student", ["acc", "loss"])],
)
def test_each_expert_is_best_by_its_own_figures(tmp_path, system, figures):
    """Of the languages of the dev set: French has no figure there."""
    args = parse(tmp_path, "--system", system)
    args.best_model_criterion = [("valid", "acc", "max"), ("valid", "loss", "min")]
    modes = {"acc": "max", "loss": "min"}
    expected = [("valid", figure, modes[figure.partition("_")[0]]) for figure in figures]
    options = LoLETrainer.build_options(args)
    assert list(options.best_model_criterion) == expected
    assert (options.grad_clip == math.inf) == (system == "experts") and args.grad_clip == 5.0


def test_an_expert_without_a_finite_gradient_does_not_stop_the_others(tmp_path, speech, caplog):
    model = experts_model(("de", "en"))
    batch = make_batch(model, [0, 1], speech)
    batch["speech"] = batch["speech"].clone()
    batch["speech"][0, 100] = torch.nan
    with caplog.at_level(logging.WARNING):
        train_epoch(LoLETrainer, model, parse(tmp_path, "--optim_conf", "lr=0.01"), [batch, batch])
    assert "updates of experts left out because their gradient was not finite: de 2" in caplog.text
    untouched = experts_model(("de", "en")).experts.parameters_of_experts()
    for lang, params in model.experts.parameters_of_experts().items():
        same = all(torch.equal(p, q) for p, q in zip(params, untouched[lang], strict=True))
        assert same == (lang == "de") and all(p.isfinite().all() for p in params)


def test_the_model_is_given_the_epoch(tmp_path, speech):
    model = student_model(teacher=False, kd="none")
    epochs = []
    model.start_epoch = lambda *epoch: epochs.append(epoch)
    train_epoch(
        LoLETrainer, model, parse(tmp_path, "--system", "multilingual"), [make_batch(model, [0], speech)], epoch=4
    )
    assert epochs == [(4, 40)]


@pytest.mark.parametrize(("epoch", "schedule"), [(1, 1.0), (3, 0.6), (5, 0.2)])
def test_weights_of_distillation_move_linearly_to_their_final_factor(tmp_path, speech, epoch, schedule):
    model = student_model(final_factor=0.2)
    args = parse(tmp_path, "--system", "student", "--max_epoch", "5", "--optim_conf", "lr=0.0")
    train_epoch(KDTrainer, model, args, [make_batch(model, [0], speech)], epoch)
    assert model.kd_factor == pytest.approx(schedule)


def test_the_losses_of_distillation_are_logged_and_the_teacher_does_not_move(tmp_path, speech, caplog):
    model, args = student_model(), parse(tmp_path, "--system", "student", "--max_epoch", "2", "--optim_conf", "lr=0.01")
    before = [p.clone() for p in model.kd.teacher.parameters()]
    with caplog.at_level(logging.INFO):
        reporter = train_epoch(KDTrainer, model, args, [make_batch(model, [0, 1, 2, 3], speech)])
    means = reporter.stats[1]["train"]
    expected = ", ".join(f"{name} {means[name]:.4f}" for name in ("loss_asr", "loss_layers", "loss_logits"))
    assert f"distillation, weights times 1: {expected}" in caplog.text
    assert all(torch.equal(p, q) for p, q in zip(model.kd.teacher.parameters(), before, strict=True))
    assert any(p.any() for name, p in trained(model).items() if "lora_B" in name)
    assert KDTask.trainer is KDTrainer


def test_a_finished_training_leaves_each_expert_from_its_own_best_epoch(tmp_path):
    model = experts_model(("de", "en", "fr"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"backbone": "tiny"}))
    for epoch in (1, 2, 3):
        for p in trained(model).values():
            p.data.fill_(float(epoch))
        torch.save(model.state_dict(), tmp_path / f"{epoch}epoch.pth")
    for name, epoch in (("acc", 3), ("acc_de", 1), ("acc_en", 2)):
        (tmp_path / f"valid.{name}.ave.pth").symlink_to(f"{epoch}epoch.pth")
    save_trained(tmp_path, model, [("valid", "acc", "max"), ("valid", "acc_de", "max")])
    for lang, epoch in (("de", 1), ("en", 2), ("fr", 3)):
        adapter = Adapter.read(tmp_path / "adapters" / lang)
        assert adapter.config.base_model_name_or_path == "tiny"
        assert {float(x) for pair in adapter.factors.values() for f in pair.values() for x in f.unique()} == {epoch}


def test_resources_count_all_epochs_and_only_what_trains(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2).requires_grad_(False))
    epochs = {
        epoch: {
            "train": {"time": timedelta(seconds=10), "total_count": 7 * epoch},
            "valid": {"time": timedelta(seconds=2), "total_count": epoch},
        }
        for epoch in (1, 2, 3)
    }
    torch.save({"model": model.state_dict(), "reporter": {"stats": epochs, "epoch": 3}}, tmp_path / "checkpoint.pth")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"config": "conf/train.yaml"}))
    write_training_resources(tmp_path, model)
    expected = {"config": "conf/train.yaml", "trained_parameters": 16, "steps": 21, "seconds": 36.0}
    assert read_resources(tmp_path) == expected


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            "DataLoader worker (pid 3) is killed by signal: Killed.",
            RuntimeError,
            "most often memory ran out; free some",
        ),
        (
            "[enforce fail] . PytorchStreamWriter failed writing file",
            OSError,
            "could not write a checkpoint to .*: check the disk",
        ),
        ("shapes do not fit", RuntimeError, "^shapes do not fit$"),
    ],
)
def test_errors_of_workers_and_disks_say_what_to_do(tmp_path, error, kind, message):
    with pytest.raises(kind, match=message), explain_errors(tmp_path):
        raise RuntimeError(error)


def test_a_checkpoint_that_a_full_disk_cuts_is_explained(tmp_path):
    with (
        room_for(1000),
        pytest.raises(OSError, match=f"could not write a checkpoint to {tmp_path}"),
        explain_errors(tmp_path),
    ):
        torch.save({"w": torch.zeros(10_000)}, tmp_path / "checkpoint.pth")

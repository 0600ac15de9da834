"""The task: its command line and configuration files, what it builds, and how it prepares an utterance."""

import io
import json

import numpy as np
import pytest
import torch
import yaml
from conftest import Evil, make_batch
from espnet_models import CODES, experts_model, full_model, mole_model, student_model, trained

from espnet_lole.lole.kd import LoRAKD
from espnet_lole.systems import TRAINED_HERE
from espnet_lole.tasks.lole import LoLEPreprocessor, LoLETask, system_choices
from espnet_lole.train.optimizer import ExpertAdamW

BASE = ["--backbone", "x", "--langs", "de", "en", "--output_dir", "x"]


def write(folder, **files):
    """Write configurations and return their paths."""
    for name, conf in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(conf))
    return [str(folder / f"{name}.yaml") for name in files]


def options(recipe, system="experts", *more):
    """Return the options of a training on the recipe's backbone and experts."""
    given = ["--system", system, "--backbone", str(recipe / "tiny"), "--langs", *CODES, "--output_dir", "x", *more]
    return given + (["--experts", str(recipe / "exp/experts/adapters")] if system in ("mole", "student") else [])


def test_later_files_override_earlier_ones_key_by_key_and_options_override_files(tmp_path):
    files = write(
        tmp_path,
        shared={
            "backbone": "a",
            "max_epoch": 3,
            "optim_conf": {"lr": 0.1, "weight_decay": 0.2},
            "expert_conf": {"rank": 4},
        },
        own={"max_epoch": 7, "optim_conf": {"lr": 0.5}, "expert_conf": {"alpha": 8.0}},
    )
    args = LoLETask.parse_args(["--config", *files, "--langs", "de", "--output_dir", "x", "--expert_conf", "rank=16"])
    assert (args.backbone, args.max_epoch) == ("a", 7)
    assert args.optim_conf == {"lr": 0.5, "weight_decay": 0.2}
    assert args.expert_conf == {"rank": 16, "alpha": 8.0}
    assert args.config == " ".join(files)


def test_an_unknown_key_is_named_with_its_file(tmp_path):
    files = write(tmp_path, good={"max_epoch": 1}, bad={"max_epochs": 1, "rank": 2})
    with pytest.raises(ValueError, match=r"bad.yaml: unknown keys max_epochs rank; lole_train --help lists those"):
        LoLETask.parse_args(["--config", *files, *BASE])
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        LoLETask.parse_args(["--config", str(tmp_path / "none.yaml"), *BASE])


def test_defaults_depend_on_the_system_and_files_override_them(tmp_path):
    """Also where a file names the system."""
    (mole,) = write(tmp_path, mole={"system": "mole", "keep_nbest_models": 2})
    experts, from_file = LoLETask.parse_args(BASE), LoLETask.parse_args(["--config", mole, *BASE])
    student = LoLETask.parse_args([*BASE, "--system", "student", "--best_model_criterion", "valid,loss_asr,min"])
    assert [a.system for a in (experts, from_file, student)] == ["experts", "mole", "student"]
    assert (experts.iterator_type, student.iterator_type) == ("sequence", "task")
    assert [list(map(tuple, a.best_model_criterion)) for a in (experts, from_file, student)] == [
        [("valid", "acc", "max")],
        [("valid", "loss", "min")],
        [("valid", "loss_asr", "min")],
    ]
    assert (experts.keep_nbest_models, from_file.keep_nbest_models) == (1, 2)
    assert (experts.batch_type, experts.valid_iterator_type, experts.optim) == ("numel", "sequence", "adamw")
    assert experts.unused_parameters and not student.unused_parameters


def test_one_call_does_not_change_the_defaults_of_the_next(tmp_path):
    files = write(tmp_path, conf={"max_epoch": 7, "optim_conf": {"lr": 0.5}, "system": "mole"})
    LoLETask.parse_args(["--config", *files, *BASE, "--optim_conf", "eps=1.0", "--expert_conf", "rank=3"])
    args = LoLETask.parse_args(BASE)
    assert (args.system, args.optim_conf, args.expert_conf) == ("experts", {}, {})


def test_every_system_that_is_trained_here_has_a_model(recipe):
    assert set(system_choices.classes) == set(TRAINED_HERE)
    for system in TRAINED_HERE:
        args = LoLETask.parse_args(options(recipe, system, "--fusion_conf", "shared_layers=1"))
        model = LoLETask.build_model(args)
        assert model.languages == CODES and trained(model)
        distilled = isinstance(getattr(model, "kd", None), LoRAKD) and model.kd.teacher is not None
        assert distilled == (system == "student")


def test_a_built_model_has_the_options_and_gives_espnet_its_shapes(recipe, speech):
    args = LoLETask.parse_args(
        options(recipe, "experts", "--expert_conf", "rank=2", "--activation_checkpointing", "true")
        + ["--specaug", "specaug", "--specaug_conf", "apply_time_mask=false", "--pad_to", "+1s"]
    )
    model = LoLETask.build_model(args).train()
    assert model.experts.config.rank == 2 and model.whisper.pad_to == "+1s"
    assert model.whisper.recompute is not None and model.whisper.augment is not None
    loss, stats, weight = model(**make_batch(model, [0, 1, 2, 3], speech))
    loss.backward()
    assert {tuple(x.shape) for x in (loss, weight, *stats.values())} == {(1,)}


def test_optimizers_move_what_trains(recipe):
    """The fusion at a learning rate of its own, each expert alone."""
    args = LoLETask.parse_args([*BASE, "--optim_conf", "lr=0.01", "--fusion_lr_factor", "10", "--grad_clip", "2.0"])
    for model in (experts_model(), mole_model(), student_model(), full_model()):
        (optimizer,) = LoLETask.build_optimizers(args, model)
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        assert set(map(id, moved)) == set(map(id, trained(model).values())) and len(moved) == len(trained(model))
        assert isinstance(optimizer, ExpertAdamW) == hasattr(model, "experts")
        if hasattr(model, "mole"):
            assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
                (0.01, 0.01),
                (0.1, 0.0),
            ]
            assert {p.dim() for p in optimizer.param_groups[1]["params"]} == {2}


def test_the_optimizer_of_experts_clips_each_by_grad_clip():
    model = experts_model(("de", "en"))
    args = LoLETask.parse_args([*BASE, "--optim_conf", "lr=0.01", "--grad_clip", "2.0"])
    (optimizer,) = LoLETask.build_optimizers(args, model)
    for p in trained(model).values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for params in model.experts.parameters_of_experts().values():
        assert torch.cat([p.grad.flatten() for p in params]).norm() == pytest.approx(2.0, rel=1e-4)


def test_mistakes_are_refused(recipe):
    for missing in ("backbone", "langs"):
        args = LoLETask.parse_args(BASE)
        setattr(args, missing, None)
        with pytest.raises(ValueError, match=f"expected --{missing}, got none"):
            LoLETask.check_required_command_args(args)
    with pytest.raises(ValueError, match="experts train with optim: adamw, one for each expert; got 'sgd'"):
        LoLETask.check_required_command_args(LoLETask.parse_args([*BASE, "--optim", "sgd"]))
    LoLETask.check_required_command_args(LoLETask.parse_args([*BASE, "--system", "full", "--optim", "sgd"]))
    with pytest.raises(ValueError, match="specaug_conf without specaug"):
        LoLETask.check_required_command_args(LoLETask.parse_args([*BASE, "--specaug_conf", "num_time_mask=1"]))
    for system, more, message in (
        ("experts", ["--expert_conf", "ranks=3"], "expert_conf.*ranks"),
        ("full", ["--system_conf", "lid_weight=3"], r"expected in system_conf keys of \[\], got \['lid_weight'\]"),
        (
            "full",
            ["--specaug", "specaug", "--specaug_conf", "width=3"],
            r"expected in specaug_conf keys of .*got \['width'\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            LoLETask.build_model(LoLETask.parse_args(options(recipe, system, *more)))


@pytest.mark.parametrize("system", ["experts", "mole"])
def test_the_printed_configuration_has_every_key_and_is_one(recipe, tmp_path, monkeypatch, system):
    """As of ESPnet's tasks: ``--print_config`` shows the options of the chosen classes, too."""
    masks = {"time_mask_width_ratio_range": [0.0, 0.05]}
    files = write(
        tmp_path, shared={"optim_conf": {"lr": 0.5}}, own={"max_epoch": 7, "specaug": "specaug", "specaug_conf": masks}
    )
    command = ["--config", *files, *options(recipe, system), "--fusion_conf", "shared_layers=1"]
    monkeypatch.setattr("sys.argv", ["lole_train", *command, "--print_config"])
    LoLETask.print_config(file=(out := io.StringIO()))
    printed = yaml.safe_load(out.getvalue())
    assert (printed["max_epoch"], printed["optim_conf"], printed["batch_type"]) == (7, {"lr": 0.5}, "numel")
    assert printed["specaug_conf"]["num_freq_mask"] == 2
    assert printed["system_conf"] == ({"lid_weight": 1.0} if system == "mole" else {})
    again = LoLETask.parse_args(["--config", *write(tmp_path, printed=printed)])
    given = LoLETask.parse_args(command)
    filled = ("config", "specaug_conf", "system_conf")
    given, again_given = (json.loads(json.dumps(vars(args))) for args in (given, again))  # tuples are lists in YAML
    differ = [name for name, value in given.items() if name not in filled and value != again_given[name]]
    assert not differ
    assert LoLETask.build_model(again).whisper.augment is not None


def test_a_trained_model_is_built_from_its_folder_without_running_code(recipe, tmp_path):
    args = LoLETask.parse_args(options(recipe, "mole", "--fusion_conf", "shared_layers=1"))
    model = LoLETask.build_model(args)
    for p in trained(model).values():
        torch.nn.init.normal_(p)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), tmp_path / "1epoch.pth")
    built, _ = LoLETask.build_model_from_file(model_file=tmp_path / "1epoch.pth")
    assert all(torch.equal(p, trained(built)[name]) for name, p in trained(model).items())
    torch.save({"model": Evil(tmp_path / "ran")}, tmp_path / "2epoch.pth")
    with pytest.raises(ValueError, match="got other objects"):
        LoLETask.build_model_from_file(model_file=tmp_path / "2epoch.pth")
    assert not (tmp_path / "ran").exists()


def test_an_utterance_is_prepared_or_refused_with_its_name(tokenizer):
    preprocess = LoLEPreprocessor(True, ["de", "en"], tokenizer)
    ready = preprocess("u", {"speech": np.zeros(16000), "text": "yes", "lang": "en"})
    assert ready["lang"].tolist() == [1] and ready["speech"].dtype == np.float32
    assert ready["text"].tolist() == tokenizer.encode("yes", "en")
    assert "text" not in preprocess("u", {"speech": np.zeros(16000), "lang": "en"})
    with pytest.raises(ValueError, match="u: expected a language of the experts de en, got 'fr'"):
        preprocess("u", {"speech": np.zeros(16000), "text": "oui", "lang": "fr"})
    for shape in [(100,), (500_000,), (16000, 2)]:
        with pytest.raises(ValueError, match="u: expected 25 ms to 30 s"):
            preprocess("u", {"speech": np.zeros(shape), "text": "ja", "lang": "de"})


def test_utterances_of_a_language_lie_together_in_a_batch():
    rows = [
        (f"u{i}", {"speech": np.full(i + 2, i, np.float32), "lang": np.array([lang])})
        for i, lang in enumerate([1, 0, 1, 0])
    ]
    names, batch = LoLETask.build_collate_fn(None, True)(rows)
    assert names == ["u1", "u3", "u0", "u2"]
    assert batch["lang"][:, 0].tolist() == [0, 0, 1, 1] and batch["speech_lengths"].tolist() == [3, 5, 2, 4]
    assert batch["speech"].sum(1).tolist() == [3.0, 15.0, 0.0, 8.0]

"""What ESPnet's trainer is told, and what a training cost."""

from datetime import timedelta

import pytest
import torch
import yaml

from espnet_lole.evaluation.resources import read_resources
from espnet_lole.tasks.lole import LoLETask
from espnet_lole.train.trainer import LoLETrainer, write_training_resources


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
    assert read_resources(tmp_path) == {
        "config": "conf/train.yaml",
        "trained_parameters": 16,
        "steps": 21,
        "seconds": 36.0,
    }


@pytest.mark.parametrize(
    ("system", "figures"),
    [("experts", ["acc", "loss", "acc_de", "acc_tr", "loss_de", "loss_tr"]), ("mole", ["acc", "loss"])],
)
def test_each_expert_is_best_by_its_own_figures(tmp_path, system, figures):
    """Of the languages of the dev set: French has no figure there."""
    (tmp_path / "utt2lang").write_text("a tr\nb de\nc tr\n")
    options = ["--output_dir", "x", "--system", system, "--langs", "de", "fr", "tr"]
    options += ["--valid_data_path_and_name_and_type", f"{tmp_path / 'utt2lang'},lang,text"]
    args = LoLETask.get_parser().parse_args(options)
    args.best_model_criterion = [("valid", "acc", "max"), ("valid", "loss", "min")]
    modes = {"acc": "max", "loss": "min"}
    expected = [("valid", figure, modes[figure.partition("_")[0]]) for figure in figures]
    assert list(LoLETrainer.build_options(args).best_model_criterion) == expected

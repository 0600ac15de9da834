"""What a training cost, from the last checkpoint of ESPnet's trainer."""

from datetime import timedelta

import torch
import yaml

from espnet_lole.score.costs import read_costs
from espnet_lole.train.trainer import write_training_costs


def test_costs_count_all_epochs_and_only_what_trains(tmp_path):
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
    write_training_costs(tmp_path, model)
    assert read_costs(tmp_path) == {"config": "conf/train.yaml", "trained_parameters": 16, "steps": 21, "seconds": 36.0}

"""ESPnet's trainer, which tells the model the epoch and leaves what the training cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import SubReporter
from espnet2.train.trainer import Trainer, TrainerOptions

from espnet_lole.score.costs import write_costs


class LoLETrainer(Trainer):
    """ESPnet's trainer; before each epoch it calls ``model.start_epoch(epoch)``, counted from 1."""

    @classmethod
    def train_one_epoch(cls, model: torch.nn.Module, reporter: SubReporter, **others: Any) -> bool:
        """Tell the model the epoch, and train it."""
        getattr(model, "module", model).start_epoch(reporter.get_epoch())
        return super().train_one_epoch(model=model, reporter=reporter, **others)

    @classmethod
    def run(
        cls, model: torch.nn.Module, trainer_options: TrainerOptions, distributed_option: DistributedOption, **others: Any
    ) -> None:
        """Train, and write ``costs.json``."""
        super().run(model=model, trainer_options=trainer_options, distributed_option=distributed_option, **others)
        if not distributed_option.distributed or distributed_option.dist_rank == 0:
            write_training_costs(Path(trainer_options.output_dir), model)


def write_training_costs(folder: Path, model: torch.nn.Module) -> None:
    """Write ``costs.json`` of a training by ESPnet's trainer, whose last checkpoint counts steps and time over all resumptions.

    Args:
        folder: of the experiment, with ``config.yaml`` and ``checkpoint.pth``.
        model: what was trained.
    """
    checkpoint = torch.load(folder / "checkpoint.pth", map_location="cpu", weights_only=False, mmap=True)
    epochs = checkpoint["reporter"]["stats"]
    write_costs(
        folder,
        yaml.safe_load((folder / "config.yaml").read_text())["config"],
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        steps=epochs[max(epochs)]["train"]["total_count"],
        seconds=sum(phase["time"].total_seconds() for epoch in epochs.values() for phase in epoch.values()),
    )

"""ESPnet's trainer, which tells the model the epoch."""

from __future__ import annotations

from typing import Any

import torch
from espnet2.train.reporter import SubReporter
from espnet2.train.trainer import Trainer


class LoLETrainer(Trainer):
    """ESPnet's trainer; before each epoch it calls ``model.start_epoch(epoch)``, counted from 1."""

    @classmethod
    def train_one_epoch(cls, model: torch.nn.Module, reporter: SubReporter, **others: Any) -> bool:
        """Tell the model the epoch, and train it."""
        getattr(model, "module", model).start_epoch(reporter.get_epoch())
        return super().train_one_epoch(model=model, reporter=reporter, **others)

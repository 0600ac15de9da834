"""Hooks on ESPnet's trainer: the epoch, checkpoints that survive a kill, and experts without a finite gradient."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import SubReporter
from espnet2.train.trainer import Trainer, TrainerOptions
from torch import Tensor

from espnet_lole.experts.optimizer import ExpertAdamW
from espnet_lole.train.checkpoints import recover, whole_saves


class LoLETrainer(Trainer):
    """ESPnet's trainer, which goes on after a kill, tells the model the epoch, and drops experts without a finite gradient."""

    @classmethod
    def run(cls, *, trainer_options: TrainerOptions, distributed_option: DistributedOption, **others: Any) -> None:
        """Train, from the last whole checkpoint on.

        Raises:
            ValueError: there are checkpoints, and none is intact.
            OSError: a file cannot be written.
        """
        with whole_saves():
            if trainer_options.resume and distributed_option.dist_rank in (None, 0):
                recover(Path(trainer_options.output_dir), trainer_options.best_model_criterion)
            if distributed_option.distributed:
                torch.distributed.barrier()
            super().run(trainer_options=trainer_options, distributed_option=distributed_option, **others)

    @classmethod
    def train_one_epoch(
        cls, *, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer], reporter: SubReporter, **others: Any
    ) -> bool:
        """Call ``model.start_epoch(epoch)``, counted from 1, and train it."""
        own = getattr(model, "module", model)
        own.start_epoch(reporter.get_epoch())
        with checked_experts(optimizers, own.languages, reporter):
            return super().train_one_epoch(model=model, optimizers=optimizers, reporter=reporter, **others)


@contextmanager
def checked_experts(
    optimizers: Sequence[torch.optim.Optimizer], languages: Sequence[str], reporter: SubReporter
) -> Iterator[None]:
    """Within the context, a step drops the experts whose gradient is not finite, and reports how many they were.

    ESPnet skips a whole step where the norm over all parameters is not finite. It takes that norm with ``clip_grad_norm_``,
    which here looks at each expert first; the norm is not finite only where that of every expert in the batch is not.

    Args:
        optimizers: of the training; those of experts are ``ExpertAdamW``.
        languages: of the experts.
        reporter: gets ``dropped_experts``, a number for each step.
    """
    plain = torch.nn.utils.clip_grad_norm_

    def clip(*args: Any, **kwargs: Any) -> Tensor:
        for optimizer in optimizers:
            if isinstance(optimizer, ExpertAdamW):
                dropped, left = optimizer.drop_broken()
                reporter.register({"dropped_experts": float(len(dropped))})
                if dropped:
                    names = " ".join(languages[row] for row in dropped)
                    logging.warning(f"the gradient of {names} is not finite: the step does not move this expert")
                if dropped and not left:
                    return torch.tensor(torch.nan)
        return plain(*args, **kwargs)

    with patch.object(torch.nn.utils, "clip_grad_norm_", clip):
        yield

"""Hooks on ESPnet's trainer: the epoch, checkpoints that survive a kill, experts without a finite gradient, resources, errors."""

from __future__ import annotations

import argparse
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

from espnet_lole.config import load_yaml
from espnet_lole.data.kaldi import read_table
from espnet_lole.evaluation.resources import write_resources
from espnet_lole.train.checkpoints import CHECKPOINT, read_checkpoint, recover, whole_saves
from espnet_lole.train.optimizer import ExpertAdamW


class LoLETrainer(Trainer):
    """ESPnet's trainer, which goes on after a kill, tells the model the epoch, and keeps experts apart where ESPnet has one."""

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> TrainerOptions:
        """ESPnet's options; of experts, each is best by its own figure too, as if it were trained alone."""
        options = super().build_options(args)
        if args.system == "experts":
            lang_file = next(path for path, name, _ in args.valid_data_path_and_name_and_type if name == "lang")
            validated = sorted(set(read_table(Path(lang_file)).values()))
            options.best_model_criterion = [
                *options.best_model_criterion,
                *((phase, f"{key}_{lang}", mode) for phase, key, mode in options.best_model_criterion for lang in validated),
            ]
        return options

    @classmethod
    def run(
        cls, *, model: torch.nn.Module, trainer_options: TrainerOptions, distributed_option: DistributedOption, **others: Any
    ) -> None:
        """Train, from the last whole checkpoint on, and write ``resources.json``.

        Raises:
            ValueError: there are checkpoints, and none is intact.
            OSError: a file cannot be written.
            RuntimeError: a process that reads the data died.
        """
        folder, first = Path(trainer_options.output_dir), distributed_option.dist_rank in (None, 0)
        with whole_saves(), told_deaths():
            if trainer_options.resume and first:
                recover(folder, trainer_options.best_model_criterion)
            if distributed_option.distributed:
                torch.distributed.barrier()
            super().run(model=model, trainer_options=trainer_options, distributed_option=distributed_option, **others)
        if first:
            write_training_resources(folder, model)
        if distributed_option.distributed:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()  # its threads, left to the interpreter's exit, abort a process now and then

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
def told_deaths() -> Iterator[None]:
    """Within the context, PyTorch's error on a data worker that was killed says what to do."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        reason = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error  # which signal killed it
        raise RuntimeError(
            f"expected the processes that read the data to live as long as the training, got: {str(reason).strip().rstrip('.')}: "
            "most often memory ran out: free some, or lower --num_workers or --batch_bins; the same command goes on from the "
            "last checkpoint"
        ) from error


@contextmanager
def checked_experts(
    optimizers: Sequence[torch.optim.Optimizer], languages: Sequence[str], reporter: SubReporter
) -> Iterator[None]:
    """Within the context, a step drops the experts whose gradient is not finite, and reports how many they were.

    ESPnet skips a whole step where the norm over all parameters is not finite. It takes that norm with ``clip_grad_norm_``;
    that of experts, which their optimizer clips, is not finite only where that of every expert in the batch is not.

    Args:
        optimizers: of the training; those of experts are ``ExpertAdamW``.
        languages: of the experts.
        reporter: gets ``dropped_experts``, a number for each step.
    """
    plain = torch.nn.utils.clip_grad_norm_

    def clip(*args: Any, **kwargs: Any) -> Tensor:
        for optimizer in optimizers:
            if isinstance(optimizer, ExpertAdamW):
                dropped, norm = optimizer.drop_broken()
                reporter.register({"dropped_experts": float(len(dropped))})
                if dropped:
                    names = " ".join(languages[row] for row in dropped)
                    logging.warning(f"the gradient of {names} is not finite: the step does not move this expert")
                return norm.fill_(torch.nan) if dropped and not norm else norm
        return plain(*args, **kwargs)

    with patch.object(torch.nn.utils, "clip_grad_norm_", clip):
        yield


def write_training_resources(folder: Path, model: torch.nn.Module) -> None:
    """Write ``resources.json`` of a training by ESPnet's trainer; the last checkpoint counts steps and time over all resumptions.

    Args:
        folder: of the experiment, with ``config.yaml`` and ``checkpoint.pth``.
        model: what was trained.
    """
    epochs = read_checkpoint(folder / CHECKPOINT)["reporter"]["stats"]
    write_resources(
        folder,
        load_yaml(folder / "config.yaml")["config"],
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        steps=epochs[max(epochs)]["train"]["total_count"],
        seconds=sum(phase["time"].total_seconds() for epoch in epochs.values() for phase in epoch.values()),
    )

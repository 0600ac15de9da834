"""Hooks on ESPnet's trainer: epochs, resuming after a kill, what a finished training leaves, and distillation."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter, SubReporter
from espnet2.train.trainer import Trainer, TrainerOptions

from espnet_lole.config import load_yaml
from espnet_lole.data.kaldi import read_table
from espnet_lole.evaluation.resources import write_resources
from espnet_lole.train.checkpoints import CHECKPOINT, best_checkpoints, keep_previous, read_checkpoint, recover
from espnet_lole.train.optimizer import ExpertAdamW

if TYPE_CHECKING:
    from espnet_lole.espnet_model import AbsLoLEModel


class LoLETrainer(Trainer):
    """ESPnet's trainer, which goes on after a kill, tells the model the epoch, and leaves adapters at its end."""

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> TrainerOptions:
        """Return ESPnet's options; each expert is clipped alone and has its own best epoch."""
        options = super().build_options(args)
        if args.system == "experts":
            lang_file = next(path for path, name, _ in args.valid_data_path_and_name_and_type if name == "lang")
            languages = sorted(set(read_table(Path(lang_file)).values()))
            options.best_model_criterion = [
                *options.best_model_criterion,
                *(
                    (phase, f"{key}_{lang}", mode)
                    for phase, key, mode in options.best_model_criterion
                    for lang in languages
                ),
            ]
            # ExpertAdamW clips. ESPnet skips the step of all experts if its norm is not finite; one of order 0, which
            # counts the tensors with a gradient, always is.
            options.grad_clip, options.grad_clip_type = math.inf, 0.0
        return options

    @classmethod
    def run(
        cls,
        *,
        model: AbsLoLEModel,
        trainer_options: TrainerOptions,
        distributed_option: DistributedOption,
        **others: Any,
    ) -> None:
        """Train, from the last intact checkpoint on, and write adapters and ``resources.json``.

        Raises:
            ValueError: there are checkpoints, and none is intact.
            OSError: a file cannot be written.
            RuntimeError: a process that reads the data died.
        """
        folder, first = Path(trainer_options.output_dir), distributed_option.dist_rank in (None, 0)
        with explain_errors(folder):
            if trainer_options.resume and first:
                recover(folder, trainer_options.best_model_criterion)
            if distributed_option.distributed:
                torch.distributed.barrier()
            super().run(model=model, trainer_options=trainer_options, distributed_option=distributed_option, **others)
        if first:
            save_trained(folder, model, trainer_options.best_model_criterion)
            write_training_resources(folder, model)
        if distributed_option.distributed:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()  # its threads may abort the interpreter's exit

    @classmethod
    def train_one_epoch(
        cls,
        *,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        options: TrainerOptions,
        reporter: SubReporter,
        **others: Any,
    ) -> bool:
        """Call ``model.start_epoch``, train, and report skipped updates."""
        getattr(model, "module", model).start_epoch(reporter.get_epoch(), options.max_epoch)
        invalid = super().train_one_epoch(
            model=model, optimizers=optimizers, options=options, reporter=reporter, **others
        )
        for optimizer in optimizers:
            if isinstance(optimizer, ExpertAdamW):
                optimizer.report_skipped()
        return invalid

    @classmethod
    def validate_one_epoch(
        cls, *, options: TrainerOptions, distributed_option: DistributedOption, **others: Any
    ) -> None:
        """Validate; then make room for ESPnet's next checkpoint, so that a kill during its writing loses no epoch."""
        super().validate_one_epoch(options=options, distributed_option=distributed_option, **others)
        if distributed_option.dist_rank in (None, 0):
            keep_previous(Path(options.output_dir))


class KDTrainer(LoLETrainer):
    """Trains a student: logs, for each epoch, the schedule of distillation and the mean of each loss."""

    @classmethod
    def train_one_epoch(cls, *, model: torch.nn.Module, reporter: SubReporter, **others: Any) -> bool:
        """Train, then log the factor of distillation in this epoch and the losses."""
        invalid = super().train_one_epoch(model=model, reporter=reporter, **others)
        losses = {
            name: reporter.stats[name] for name in ("loss_asr", "loss_layers", "loss_logits") if name in reporter.stats
        }
        means = ", ".join(f"{name} {sum(v.value for v in values) / len(values):.4f}" for name, values in losses.items())
        logging.info(f"distillation, weights times {getattr(model, 'module', model).kd_factor:g}: {means}")
        return invalid


@contextmanager
def explain_errors(folder: Path) -> Iterator[None]:
    """Within the context, say what to do when a data worker was killed or a checkpoint could not be written."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" in str(error):
            reason = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error  # which signal killed it
            raise RuntimeError(
                f"a process that reads the data died ({str(reason).strip().rstrip('.')}): most often memory ran out; "
                "free some, or lower --num_workers: the same command goes on from the last checkpoint"
            ) from error
        if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):
            raise OSError(
                f"could not write a checkpoint to {folder}: check the disk's free space and the permissions; the same "
                "command goes on from the last checkpoint"
            ) from error
        raise


def save_trained(folder: Path, model: AbsLoLEModel, criteria: Sequence[Sequence[str]]) -> None:
    """Write the adapters of a finished training, each language's from its own best epoch."""
    backbone = load_yaml(folder / "config.yaml")["backbone"]
    best = best_checkpoints(folder, criteria, model.languages)
    for file in sorted(set(best.values())):
        model.load_state_dict(read_checkpoint(file))
        langs = [lang for lang in model.languages if best[lang] == file]
        model.save_trained(folder, langs, backbone)
        logging.info(f"{' '.join(langs)}: best in {file.name}")


def write_training_resources(folder: Path, model: torch.nn.Module) -> None:
    """Write ``resources.json`` of a training by ESPnet's trainer, over all resumptions.

    Args:
        folder: of the experiment, with ``config.yaml`` and ``checkpoint.pth``.
        model: what was trained.
    """
    reporter = Reporter()
    reporter.load_state_dict(read_checkpoint(folder / CHECKPOINT)["reporter"])
    epochs = reporter.stats
    write_resources(
        folder,
        load_yaml(folder / "config.yaml")["config"],
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        steps=epochs[max(epochs)]["train"]["total_count"],
        seconds=sum(phase["time"].total_seconds() for epoch in epochs.values() for phase in epoch.values()),
    )

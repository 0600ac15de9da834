#!/usr/bin/env python3
"""Write trained experts, or a student, as ``peft`` adapters, and a student or a fine-tuned Whisper for ``transformers``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from espnet_lole.export.whisper import save_merged, save_model
from espnet_lole.lole.adapters import save_expert
from espnet_lole.train.checkpoints import best_of, read_checkpoint
from espnet_lole.whisper.checkpoint import load_backbone


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asr_model_file", type=Path, required=True, help="checkpoint; its config.yaml is beside it")
    parser.add_argument("--output_dir", type=Path, help="experts, student: gets a folder for each adapter")
    parser.add_argument("--merged", type=Path, help="student, full: gets a Whisper of transformers with all in its weights")
    return parser


def export(checkpoint: Path, adapters: Path | None, merged: Path | None) -> str:
    """Write what a checkpoint holds, and return words on it.

    Args:
        checkpoint: of experts, of a student or of a fine-tuned Whisper. Experts are each taken from their own best epoch, if it
            is the best of a training (``valid.acc.ave.pth``).
        adapters: gets a folder for each adapter.
        merged: gets a Whisper of ``transformers``.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the checkpoint is of MoLE, or the folder that the system needs is not given.
    """
    from espnet_lole.espnet_student_model import STUDENT
    from espnet_lole.tasks.lole import LoLETask

    model, train_args = LoLETask.build_model_from_file(checkpoint.parent / "config.yaml")
    if train_args.system == "mole":
        raise ValueError(f"expected a checkpoint of experts, of a student or of a fine-tuned Whisper, got MoLE's in {checkpoint}")
    needed, folder = ("--merged", merged) if train_args.system == "full" else ("--output_dir", adapters)
    if folder is None:
        raise ValueError(f"expected {needed} for a checkpoint of system {train_args.system}, got none")
    if train_args.system == "experts":
        best = {lang: best_of(checkpoint, lang).resolve() for lang in model.languages}
        for file in sorted(set(best.values())):
            model.load_state_dict(read_checkpoint(file))
            for lang in (lang for lang in best if best[lang] == file):
                save_expert(model.bank, lang, folder / lang, train_args.backbone)
                logging.info(f"{lang}: {file.name}")
        return f"adapters of {' '.join(best)} in {folder}"
    model.load_state_dict(read_checkpoint(checkpoint))
    if train_args.system == "full":
        save_model(model.backbone.model, folder, train_args.langs)
        return f"Whisper in {folder}"
    save_expert(model.student, STUDENT, folder / STUDENT, train_args.backbone)
    if merged is not None:
        save_merged(load_backbone(train_args.backbone, train_args.window).model, folder / STUDENT, merged, train_args.langs)
    return f"adapter in {folder / STUDENT}"


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        logging.info(export(args.asr_model_file, args.output_dir, args.merged))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

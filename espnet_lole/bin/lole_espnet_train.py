#!/usr/bin/env python3
"""Train one of ESPnet's own models by its ``asr_train``, in a folder that holds no other training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from espnet2.tasks.asr import ASRTask

from espnet_lole.train.espnet_whisper import register_backbone
from espnet_lole.train.record import training_folder


class RecordedASRTask(ASRTask):
    """ESPnet's task, which refuses a folder with a training of other data or options."""

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Train as this process's part.

        Raises:
            BlockingIOError: another process trains there.
            ValueError: the folder holds another training.
        """
        register_backbone(vars(args))
        with training_folder(args):
            super().main_worker(args)


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    RecordedASRTask.main(cmd=cmd)


if __name__ == "__main__":
    main()

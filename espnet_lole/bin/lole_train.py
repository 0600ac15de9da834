"""Train a system: ``python -m espnet_lole.bin.lole_train --config conf/train.yaml conf/train_experts.yaml ...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from espnet_lole.tasks.lole import KDTask, LoLETask


def main(cmd: Sequence[str] | None = None) -> None:
    """Train; a mistake in the configuration is one line."""
    try:
        args = LoLETask.parse_args(cmd)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    task = KDTask if args.system == "student" else LoLETask
    task.main(args=args)


if __name__ == "__main__":
    main()

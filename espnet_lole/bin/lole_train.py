#!/usr/bin/env python3
"""Train language experts: ``python -m espnet_lole.bin.lole_train --config conf/train_experts.yaml ...``."""

from espnet_lole.tasks.lole import LoLETask


def get_parser():  # noqa: ANN201
    """The command line: ESPnet's options and those of the experts."""
    return LoLETask.get_parser()


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    LoLETask.main(cmd=cmd)


if __name__ == "__main__":
    main()

"""The record in a training's folder of what it is made of, so that another training is not taken for it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

from espnet2.train.distributed_utils import get_rank

from espnet_lole.atomic_io import LOCK, dir_lock, write_text_atomic
from espnet_lole.config import load_yaml
from espnet_lole.data.digests import differences, digest_set, digest_weights
from espnet_lole.evaluation.decodings import TRAINING
from espnet_lole.evaluation.resources import RESOURCES
from espnet_lole.lole.mole_weights import MOLE_WEIGHTS
from espnet_lole.lole.peft_files import CONFIG, WEIGHTS
from espnet_lole.ownership import check_output
from espnet_lole.train.espnet_whisper import backbone_file
from espnet_lole.whisper.checkpoint import weight_files

ADAPTER = (WEIGHTS, CONFIG)
LOGS = ("train.log", "launch.log", "q")
"""Logs of a training that runs; in `q` a cluster's scripts wait for its end."""
MACHINE = """
    activation_checkpointing allow_variable_data_keys config create_graph_in_tensorboard cudnn_benchmark
    cudnn_deterministic cudnn_enabled ddp_comm_hook detect_anomaly dry_run gradient_as_bucket_view local_rank
    log_interval log_level max_cache_fd max_cache_size multiprocessing_distributed ngpu num_att_plot num_workers
    output_dir print_config required resume sharded_ddp unused_parameters use_matplotlib use_tensorboard use_wandb
    valid_max_cache_size
    """.split()
"""Options that do not change what is learned: the machine, logs, and memory."""
FILES = "backbone experts init_expert init_mole".split()
"""Options that name files, whose content counts and not their path."""
MAX_SHOWN = 4
LAUNCHED = ("train.log*", "train.*.log", "launch.log", "q/", ".dist_init_*")
"""What ESPnet's launcher writes into the folder of a training before it starts."""


@contextmanager
def training_folder(args: argparse.Namespace) -> Iterator[None]:
    """Reserve ``args.output_dir`` for this training: no other process and no other training is in it.

    The first process locks it; others do nothing. With ``--resume false`` an earlier training is moved aside.

    Raises:
        BlockingIOError: another process trains there.
        ValueError: it has a training of other data, options or weights, or one whose record is missing; or other files.
    """
    folder = Path(args.output_dir)
    first = get_rank(args.dist_rank, args.dist_launcher) in (None, 0)
    if first:
        check_experiment(folder)
    with dir_lock(folder) if first else nullcontext():
        if first:
            _keep_record(folder, describe(args), args.resume)
        yield


def check_experiment(folder: Path) -> None:
    """Refuse to train in a folder of something else: checkpoints, logs and adapters there would be replaced.

    Raises:
        ValueError: it has files, and neither the lock nor the configuration of a training, nor only a launcher's logs.
    """
    config = folder / "config.yaml"
    if not folder.is_dir() or (folder / LOCK).exists() or config.is_file() and "system" in load_yaml(config):
        return
    check_output(folder, known=LAUNCHED)


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Describe what a training is made of: options, and digests of its data and of the weights that it starts from.

    Raises:
        FileNotFoundError: a file of the data or of the weights does not exist.
        ValueError: a table is malformed.
    """
    ignored = {*MACHINE, *FILES}
    described = {
        name: value
        for name, value in vars(args).items()
        if name not in ignored
        and not name.startswith(("dist_", "wandb_", "train_data", "valid_data"))
        and not name.endswith("_shape_file")
    }
    described["release of ESPnet"] = described.pop("version", None)  # reads only its own checkpoints
    for part in ("train", "valid"):
        tables = {name: Path(path) for path, name, _ in getattr(args, f"{part}_data_path_and_name_and_type")}
        if "speech" in tables:
            for file in getattr(args, f"{part}_shape_file"):
                tables["lengths"] = Path(file)
            described[f"{part} data"] = digest_set(tables.pop("speech"), tables)
    for name, files in _weights(args).items():  # the builder explains what is missing
        described[name] = {
            label: digest_weights(file) if file.is_file() else "missing" for label, file in files.items()
        }
    return json.loads(json.dumps(described))  # tuples become lists, as in the file


def _weights(args: argparse.Namespace) -> dict[str, dict[str, Path]]:
    """Return option -> the files of weights that it names, each with a label."""
    if "backbone" not in vars(args):  # one of ESPnet's own models
        file = backbone_file(vars(args))
        return {"backbone": {file.name: file}} if file else {}
    found: dict[str, dict[str, Path]] = {name: {} for name in FILES}
    found["backbone"] = {file.name: file for file in weight_files(args.backbone)}
    if args.experts and args.system in ("mole", "student"):
        folders = {lang: Path(args.experts, lang) for lang in args.langs}
        found["experts"] = {f"{lang} {name}": path / name for lang, path in folders.items() for name in ADAPTER}
    if args.init_expert:
        found["init_expert"] = {name: Path(args.init_expert, name) for name in ADAPTER}
    if args.init_mole:
        found["init_mole"] = {MOLE_WEIGHTS: Path(args.init_mole, MOLE_WEIGHTS)}
    return found


def _keep_record(folder: Path, made_of: dict[str, Any], resume: bool) -> None:
    """Write the record of a training that begins or goes on, or refuse one that differs."""
    file, started = folder / TRAINING, any(folder.glob("*.pth"))
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if started and not resume:
        _move_aside(folder)
    elif started:
        lost = [f"{file.name} is missing or broken, so that it is unknown what was trained"]
        changed = _changed(before, made_of) if isinstance(before, dict) else lost
        if changed:
            more = f"; and {len(changed) - MAX_SHOWN} more" if len(changed) > MAX_SHOWN else ""
            raise ValueError(
                f"{folder} holds another training: {'; '.join(changed[:MAX_SHOWN])}{more}. Train under another name "
                "(--asr_tag), or again with --resume false, which moves the old training aside"
            )
    if before != made_of:
        (folder / RESOURCES).unlink(missing_ok=True)  # marks the end of a training
    write_text_atomic(file, json.dumps(made_of, indent=1, sort_keys=True) + "\n")


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List what differs between two records.

    More epochs are no difference, as training goes on to them, unless the weights of the losses depend on their number.
    Nor is an option that only one of them has.
    """
    scheduled = now.get("kd_conf", {}).get("final_factor", 1.0) != 1.0
    more = {} if scheduled else {"max_epoch": max(before.get("max_epoch", 0), now["max_epoch"])}
    return differences(before | more, now)


def _move_aside(folder: Path) -> None:
    """Move a training, but for the logs that are being written, to a new folder with a number after its name."""
    old = next(path for n in count(1) if not (path := folder.with_name(f"{folder.name}.{n}")).exists())
    old.mkdir()
    for path in folder.iterdir():
        if not path.name.startswith(".") and path.name not in LOGS:
            os.replace(path, old / path.name)

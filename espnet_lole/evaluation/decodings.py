"""The record of a decoding: the weights and the test sets that its hypotheses come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.data.digests import differences, digest_set, digest_weights

DECODING, TRAINING = "decoding.json", "training.json"
"""The records of a decoding and of a training."""


def describe_decoding(weights: Iterable[Path], test_dirs: Sequence[Path]) -> dict[str, Any]:
    """Compute the digests of a decoding, before it begins.

    Args:
        weights: the files of the system that decodes.
        test_dirs: formatted test sets, `dump/raw/<set>`.

    Raises:
        OSError: a file is missing.
        ValueError: a table is malformed.
    """
    return {
        "weights": {str(file): digest_weights(file) for file in weights},
        "sets": {folder.name: _digest(folder) for folder in test_dirs},
    }


def write_decoding(output: Path, record: dict[str, Any]) -> None:
    """Write `<output>/decoding.json`, after the hypotheses.

    Raises:
        OSError: it cannot be written.
    """
    write_text_atomic(output / DECODING, json.dumps(record, indent=1) + "\n")


def check_decoding(decoded: Path, dumpdir: Path, test_sets: Iterable[str]) -> None:
    """Check that hypotheses come from the system and the test sets that are there now.

    Args:
        decoded: folder of the decoding.
        dumpdir: folder of the formatted test sets.
        test_sets: names of those that are scored.

    Raises:
        FileNotFoundError: the folder, or a test set, is not there.
        ValueError: the system was trained or the data were prepared again since, or there is no record.
    """
    file, again = decoded / DECODING, "decode again (stage 12)"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there, so that it is unknown what was decoded: {again}")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        weights, sets = record["weights"], record["sets"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is broken ({error}): {again}") from error
    changed = [name for name in weights if not Path(name).is_file() or digest_weights(Path(name)) != weights[name]]
    if changed:
        raise ValueError(f"{decoded} was decoded before {changed[0]} got its present content: {again}")
    for name in test_sets:
        if changed := differences(sets.get(name, {}), _digest(dumpdir / name), f"{name}."):
            raise ValueError(f"{decoded} has hypotheses of other data: {'; '.join(changed)}: {again}")


def seeds_of_other_trainings(experiment: Path) -> dict[str, list[str]]:
    """Find the experiments of other seeds that differ in more than the seed, and in the experts that follow from it.

    Args:
        experiment: folder of a training whose name ends in `_seed<number>`.

    Returns:
        Seed -> what differs.
    """
    name, _, seed = experiment.name.rpartition("_seed")
    here, found = experiment / TRAINING, {}
    if not (seed.isdecimal() and here.is_file()):
        return found
    for other in experiment.parent.glob(f"{name}_seed*/{TRAINING}"):
        other_seed = other.parent.name.rpartition("_seed")[2]
        if not other_seed.isdecimal():  # moved aside, or a variant
            continue
        records = (json.loads(file.read_text(encoding="utf-8")) for file in (here, other))
        changed = [text for text in differences(*records) if not text.startswith(("seed:", "experts.", "init_"))]
        if changed:
            found[other_seed] = changed
    return found


def _digest(folder: Path) -> dict[str, Any]:
    """Compute the digests of a formatted test set; its references may change without a new decoding."""
    return digest_set(folder / "wav.scp", {"lang": folder / "utt2lang"})

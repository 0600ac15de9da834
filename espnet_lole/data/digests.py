"""Digests of data and weights, to tell whether they are those of an earlier training or decoding."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from espnet_lole.data.kaldi import read_table

BLOCK = 1 << 20
HEAD = 4096
"""Bytes of an audio file's beginning and end that count; the MD5 of all samples is in the first 42 of a FLAC file."""


def digest_set(audio: Path, tables: Mapping[str, Path]) -> dict[str, Any]:
    """Compute the digests of a formatted set, whatever the order of its tables and wherever its audio lies.

    Args:
        audio: its wav.scp.
        tables: name -> a table of the set, such as text.

    Returns:
        The number of `utterances`, and a digest of the `audio` and of each table.

    Raises:
        FileNotFoundError: a table does not exist.
        ValueError: a table is malformed.
    """
    wavs = read_table(audio)
    with ThreadPoolExecutor(8) as pool:
        files = dict(zip(wavs, pool.map(digest_audio, wavs.values()), strict=True))
    parts = {"audio": files} | {name: read_table(path) for name, path in tables.items()}
    return {"utterances": len(wavs)} | {name: _digest_json(rows) for name, rows in parts.items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List what differs between two mappings, as `key: before, now value`.

    Of mappings within, a key in only one of them differs too; sets of other sizes differ in their `utterances` alone.
    """
    found = []
    for key in sorted(before.keys() | now.keys() if prefix else before.keys() & now.keys()):
        old, new = before.get(key, "not given"), now.get(key, "not given")
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old}, now {new}")
    sizes = [text for text in found if text.startswith(f"{prefix}utterances: ")]
    return sizes or found


def digest_weights(path: Path) -> str:
    """Compute the digest of a file of weights, or of the configuration of an adapter.

    The order of lists and of safetensors' metadata does not count, as it varies, nor the path of an adapter's backbone.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    stat = path.stat()
    return _digest_once(path, stat.st_mtime_ns, stat.st_size)


@lru_cache
def _digest_once(path: Path, *_: int) -> str:
    """Compute the digest of a file that several systems share; the other arguments tell whether it has changed."""
    if path.suffix == ".json":
        return _digest_json(_sort(json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}))
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            digest.update(json.dumps(header | {"__metadata__": None}, sort_keys=True).encode())
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()[:12]


def _digest_json(value: object) -> str:
    """Compute the digest of a table, or of what a JSON file holds."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _sort(value: object) -> object:
    """Sort all lists in what a JSON file holds."""
    if isinstance(value, dict):
        return {key: _sort(part) for key, part in value.items()}
    return sorted(map(_sort, value), key=repr) if isinstance(value, list) else value


def digest_audio(entry: str) -> str:
    """Compute the digest of an entry of wav.scp: of a file's size, beginning and end; else of the entry itself."""
    try:
        with open(entry, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEAD)
            file.seek(max(size - HEAD, 0))
            return hashlib.sha256(b"%d " % size + head + file.read()).hexdigest()
    except OSError:
        return entry

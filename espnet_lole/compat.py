"""Older files: the one table of keys and values that have another name now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = {
    "window": "pad_to",
    "checkpointing": "activation_checkpointing",
    "distill_conf": "kd_conf",
    "student_start": "student_init",
    "expert_start": "init_expert",
    "mole_start": "init_mole",
    "normalise": "normalize",
    "fusion.raw": "fusion.logits",
}
"""Older name of a key of ``config.yaml``, of an adapter's metadata or of MoLE's weights -> its name."""
REMOVED = {
    "weights": "module",
    "lid_class_weights": {},
}
"""Older key that is gone -> the one value that it may have, because it is what happens now."""


def pad_to(value: str) -> str:
    """Return today's name of a value of ``window``: ``short`` is ``none``, ``short+1s`` is ``+1s``."""
    return value.removeprefix("short") or "none"


def rename_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a configuration, nested mappings included, under today's names.

    Raises:
        ValueError: it has a removed key with a value that is not supported any more.
    """
    renamed: dict[str, Any] = {}
    for key, value in config.items():
        if key in REMOVED and not isinstance(value, dict) or key == "lid_class_weights":
            if value != REMOVED[key]:
                raise ValueError(f"{where}: {key}: {value} is not supported any more; train the system again")
            continue
        value = rename_config(value, where) if isinstance(value, dict) else value
        renamed[KEYS.get(key, key)] = (
            pad_to(value) if key == "window" and value else "none" if value == "free" else value
        )
    without_kd = renamed.get("kd_conf", {}).get("kd") == "none"
    if renamed.get("system") == "student" and renamed.get("student_init") == "random" and without_kd:
        renamed["system"] = "multilingual"
    return renamed

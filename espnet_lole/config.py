"""Configurations: YAML files, merged key by key, and the dataclasses that check them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

Conf = TypeVar("Conf")


def load_yaml(file: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, not YAML, or not a mapping of names.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no configuration at {file}: check the path")
    try:
        conf = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file}: not YAML in UTF-8: {' '.join(str(error).split())}") from error
    if not isinstance(conf, dict | None) or any(not isinstance(key, str) for key in conf or {}):
        raise ValueError(f"{file}: expected a mapping of names to values, got {conf!r}")
    return conf or {}


def config_files(config: Path) -> list[Path]:
    """List a configuration after those in its folder that it overrides, whose names begin its own.

    They are ``train.yaml``, ``train_student.yaml`` and ``train_student_long.yaml`` for the last of these.
    """
    overridden = (file for file in config.parent.glob(f"*{config.suffix}") if config.stem.startswith(f"{file.stem}_"))
    return [*sorted(overridden, key=lambda file: len(file.stem)), config]


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge two configurations; where both have a key, ``over`` wins, and two mappings are merged in turn."""
    nested = {key for key, value in over.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return base | {key: merge(base[key], value) if key in nested else value for key, value in over.items()}


def read_conf(kind: type[Conf], conf: object, name: str) -> Conf:
    """Build a frozen dataclass from a part of a configuration.

    Types are strict, as YAML has them: ``"8"``, ``8.0`` and ``true`` are no integers. A list may stand for a tuple, an
    integer for a float.

    Args:
        kind: the dataclass.
        conf: the mapping with its values.
        name: name of the part or its file, for messages.

    Raises:
        ValueError: not a mapping, an unknown or missing key, a value of another type, or one that the dataclass
            refuses.
    """
    known = ", ".join(field.name for field in fields(kind))
    if not isinstance(conf, dict):
        raise ValueError(f"{name}: expected a mapping with the keys {known}, got {conf!r}")
    checked = checked_dataclass(kind, frozen=True, config=ConfigDict(extra="forbid", strict=True))
    values = {str(key): tuple(value) if isinstance(value, list) else value for key, value in conf.items()}
    try:
        return kind(**vars(checked(**values)))
    except ValidationError as error:
        problems = "; ".join(map(_explain, error.errors()))
        raise ValueError(f"{name}: {problems} (known keys: {known})") from error


def _explain(problem: dict[str, Any]) -> str:
    """Describe one of pydantic's errors: the key, what is wrong with it, and the value."""
    key, value = ".".join(map(str, problem["loc"])), problem["input"]
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if reason := {"missing": "missing key", "unexpected_keyword_argument": "unknown key"}.get(problem["type"]):
        return f"{reason} {key!r}"
    hint = ": write 1.0e-4 with its point" if problem["type"] == "float_type" and isinstance(value, str) else ""
    return f"{key}: {problem['msg'].lower()}, got {value!r}{hint}"

"""Parts of configurations: dataclasses filled from the mappings of a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

Conf = TypeVar("Conf")


def load_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, no YAML, or no mapping of names.
    """
    if not file.is_file():
        raise FileNotFoundError(f"expected a configuration {file}, found none: check the path")
    try:
        conf = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file}: expected YAML in UTF-8, got: {' '.join(str(error).split())}") from error
    if not isinstance(conf, dict | None) or any(not isinstance(key, str) for key in conf or {}):
        raise ValueError(f"{file}: expected a mapping of names to values, got {conf!r}")
    return conf or {}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with the values of another over it; nested mappings are merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def read_conf(kind: type[Conf], conf: object, name: str) -> Conf:
    """A part's configuration.

    Args:
        kind: a dataclass.
        conf: its values.
        name: of the part or its file, for messages.

    Raises:
        ValueError: not a mapping, an unknown or missing key, a value of another type, or one that the part refuses.
    """
    known = {field.name: field for field in fields(kind)}
    needed = {key for key, field in known.items() if field.default is MISSING and field.default_factory is MISSING}
    if not isinstance(conf, dict):
        raise ValueError(f"expected in {name} a mapping with keys of {sorted(known)}, got {conf!r}")
    if unknown := sorted(map(str, set(conf) - set(known))) or sorted(needed - set(conf)):
        raise ValueError(
            f"expected in {name} keys of {sorted(known)}, {sorted(needed)} among them, got {sorted(map(str, conf))}: {unknown}"
        )
    hints = get_type_hints(kind)
    for key, value in conf.items():
        if not _fits(value, hints[key]):
            raise ValueError(
                f"expected {key} of {name} to be {known[key].type}, got {value!r}: correct it (1.0e-4 needs its point)"
            )
    try:
        return kind(**conf)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _fits(value: object, hint: Any) -> bool:
    """Is a value from YAML of an annotated type? A list stands for a tuple, an integer for a float."""
    if get_origin(hint) is UnionType:
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is Mapping:
        of_key, of_value = get_args(hint)
        return isinstance(value, dict) and all(_fits(k, of_key) and _fits(v, of_value) for k, v in value.items())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)

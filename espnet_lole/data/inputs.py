"""What users transcribe: files, bytes, samples with or without a rate, and dictionaries of `datasets`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from os import PathLike, fspath
from typing import Any

import numpy as np

from espnet_lole.data.reading import SAMPLE_RATE, read_blocks, resample_blocks
from espnet_lole.data.samples import AudioError, check_rate, to_mono

Input = Any
"""One of: a path; a file opened in binary mode, or its bytes; an array or a tensor of samples at 16 kHz, see `to_mono`;
a tuple of samples and their rate, in either order; a dictionary with `array` (or `raw`) and `sampling_rate`, or with
`bytes` or `path`; an `AudioDecoder` of `datasets` or torchcodec."""


def read_input(item: Input, name: str) -> Iterator[np.ndarray]:
    """Read an input.

    Args:
        item: the input.
        name: its name or position, for messages about samples.

    Yields:
        Samples at 16 kHz, mono, float32 in [-1, 1], shape (S,).

    Raises:
        AudioError: it cannot be read, or is none of the kinds of `Input`.
    """
    name = f"input {name}" if name.isdecimal() else name
    if isinstance(item, dict):
        item = _from_dict(item, name)
    elif hasattr(item, "get_all_samples"):
        try:
            decoded = item.get_all_samples()
        except (RuntimeError, ValueError) as error:
            raise AudioError(f"cannot be decoded: {name}: {error}") from error
        item = decoded.data, decoded.sample_rate
    if isinstance(item, bytes | bytearray | memoryview):
        item = io.BytesIO(item)
        item.name = name
    if isinstance(item, str | PathLike) or hasattr(item, "read"):
        blocks = read_blocks(fspath(item) if isinstance(item, str | PathLike) else item)
    else:
        samples, rate = _with_rate(item)
        blocks = [(to_mono(samples, name), check_rate(rate, name))]
    yield from resample_blocks(blocks)


def name_input(item: Input, number: int) -> str:
    """Name an input: its path, or its position among the inputs."""
    if isinstance(item, dict):
        item = item.get("path")
    return fspath(item) if isinstance(item, str | PathLike) else str(getattr(item, "name", None) or number)


def as_inputs(inputs: Input | Iterable[Input]) -> Iterable[Input]:
    """Make a list of one input; many remain as they are."""
    one = isinstance(inputs, str | PathLike | bytes | bytearray | memoryview | dict | np.ndarray)
    one = one or any(hasattr(inputs, name) for name in ("read", "detach", "get_all_samples"))
    return [inputs] if one or _is_rated(inputs) else inputs


def _is_rated(item: Input) -> bool:
    """Check whether an input is a pair of samples and a number."""
    return isinstance(item, tuple) and len(item) == 2 and sum(_is_number(part) for part in item) == 1


def _is_number(part: Any) -> bool:
    """Check whether this is a number of Python, numpy or PyTorch."""
    return not isinstance(part, str | bytes | PathLike | dict) and not hasattr(part, "read") and np.ndim(part) == 0


def _with_rate(item: Input) -> tuple[Any, Any]:
    """Return samples and their rate, which is 16 kHz if it is not given."""
    if not _is_rated(item):
        return item, SAMPLE_RATE
    return item[::-1] if _is_number(item[0]) else item


def _from_dict(item: dict, name: str) -> Input:
    """Return the samples and their rate, the bytes or the path of a dictionary."""
    samples = item.get("array", item.get("raw"))
    if samples is not None and item.get("sampling_rate") is not None:
        return samples, item["sampling_rate"]
    if samples is None and (item.get("bytes") or item.get("path")):
        return item.get("bytes") or item["path"]
    raise AudioError(
        f"no samples: {name}: expected a dictionary with array and sampling_rate, with bytes or with path, "
        f"got the keys {', '.join(map(str, item)) or 'none'}"
    )

"""What a training of MoLE changes, fusion weights and classifier: their file, and a start from fewer languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from espnet_lole import compat
from espnet_lole.lole.mole import MoLE

MOLE_WEIGHTS = "mole.safetensors"
"""MoLE's fusion weights and classifier in the folder of a training or an export."""
FUSION = "fusion.logits"


def trained_state(mole: MoLE) -> dict[str, Tensor]:
    """Return what training changes: ``fusion.logits`` of all G merged linears, (G, 2 or 1, E), and the classifier."""
    logits = [layer.logits.detach() for layer in mole.frontend.fused.values()]
    fusion = {FUSION: torch.stack(logits)} if logits else {}
    return fusion | {f"classifier.{name}": value for name, value in mole.frontend.classifier.state_dict().items()}


def save_trained(mole: MoLE, file: Path) -> None:
    """Write what training changes as safetensors, with the fingerprints of the backbone and the experts."""
    metadata = {name: str(value) for name, value in mole.fingerprints.items()}
    save_file({name: value.contiguous() for name, value in trained_state(mole).items()}, file, metadata)


def read_trained(file: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Read what ``save_trained`` wrote: the tensors, and the fingerprints of backbone and experts.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(file, "pt") as tensors:
            state = {compat.KEYS.get(key, key): tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
            metadata = tensors.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); copy or train it again") from error
    fingerprints = {}
    for name in ("backbone", "experts"):
        value = state.pop(f"{name}_fingerprint", metadata.get(name))  # older files have a tensor
        if value is not None:
            fingerprints[name] = int(value)
    return state, fingerprints


@torch.no_grad()
def load_trained(mole: MoLE, state: Mapping[str, Tensor], where: object) -> None:
    """Give a MoLE what ``trained_state`` returned for another one of its shape.

    Raises:
        ValueError: the state has other names or shapes; ``where`` is named.
    """
    _check_shapes({name: value.shape for name, value in trained_state(mole).items()}, state, mole, where)
    for layer, logits in zip(mole.frontend.fused.values(), state.get(FUSION, ()), strict=True):
        layer.logits.copy_(logits)
    classifier = {name.partition(".")[2]: value for name, value in state.items() if name != FUSION}
    mole.frontend.classifier.load_state_dict(classifier)


@torch.no_grad()
def extend_trained(mole: MoLE, state: Mapping[str, Tensor], languages: Sequence[str], where: object) -> None:
    """Start a MoLE from a trained one of some of its languages.

    A new language's fusion logits start as the mean of the others', its row of the classifier's last layer as it was
    drawn.

    Args:
        mole: the new one.
        state: ``trained_state`` of the trained one, of the same fusion and classifier.
        languages: those of the trained one.
        where: its name in messages.

    Raises:
        ValueError: it has a language that the new one lacks, or parts of another shape.
    """
    mine = mole.experts.languages
    if missing := sorted(set(languages) - set(mine)):
        raise ValueError(f"expected a MoLE of some of the languages {' '.join(mine)}, got one of {missing} too")
    last = f"classifier.mlp.{len(mole.frontend.classifier.mlp) - 1}"
    language_axis = {FUSION: 2, f"{last}.weight": 0, f"{last}.bias": 0}
    new, shapes = trained_state(mole), {}
    for name, value in new.items():
        axis = language_axis.get(name)
        shapes[name] = torch.Size(len(languages) if i == axis else size for i, size in enumerate(value.shape))
    _check_shapes(shapes, state, mole, where)
    if FUSION in new:
        new[FUSION] = state[FUSION].mean(2, keepdim=True).expand(new[FUSION].shape)
    rows = torch.tensor([mine.index(lang) for lang in languages])
    by_language = {
        name: new[name].index_copy(axis, rows, state[name]) for name, axis in language_axis.items() if name in new
    }
    load_trained(mole, {**state, **by_language}, where)


def _check_shapes(expected: Mapping[str, torch.Size], state: Mapping[str, Tensor], mole: MoLE, where: object) -> None:
    actual = {name: value.shape for name, value in state.items()}
    if wrong := sorted(name for name in expected.keys() | actual if expected.get(name) != actual.get(name)):
        raise ValueError(
            f"{where} is no MoLE of the languages {' '.join(mole.experts.languages)} in this shape: {wrong[0]} is "
            f"{actual.get(wrong[0])} instead of {expected.get(wrong[0])}"
        )

"""Experts of many languages on disk, of which a bounded number is in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from espnet_lole.lole.adapters import WEIGHTS, Adapter, load_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig


class ExpertCache:
    """A bank of ``capacity`` places; an expert is read from disk when a batch needs it, into the place least recently used.

    Args:
        model: the Whisper of ``transformers``; frozen and changed in place.
        folder: of the ``peft`` adapters, one subfolder a language.
        capacity: most experts in memory, and most languages of a batch.

    Raises:
        FileNotFoundError: the folder has no adapters.
        ValueError: the capacity is below 1.
    """

    def __init__(self, model: nn.Module, folder: Path, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"expected a capacity of 1 expert or more, got {capacity}")
        self._folders = {file.parent.name: file.parent for file in sorted(folder.glob(f"*/{WEIGHTS}"))}
        if not self._folders:
            raise FileNotFoundError(f"expected adapters, one subfolder a language, in {folder}, found none")
        rank, targets = _shape(self._folders.values())
        self._places = [f"place{i}" for i in range(min(capacity, len(self._folders)))]
        self._bank = ExpertBank(model, self._places, ExpertConfig(rank, alpha=2.0 * rank, targets=targets))
        self._place_of: OrderedDict[str, int] = OrderedDict()  # of the languages in memory, the least recently used first
        self.reads = 0
        """Experts read from disk so far."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages with an expert on disk."""
        return tuple(self._folders)

    def indices(self, langs: Sequence[str]) -> list[int]:
        """The place of each utterance's expert, which is read from disk unless it is in memory.

        Raises:
            ValueError: a language has no expert, or there are more languages than places.
        """
        wanted = list(dict.fromkeys(langs))
        if unknown := [lang for lang in wanted if lang not in self._folders]:
            raise ValueError(f"expected a language with an expert, got {unknown[0]!r}: there are {' '.join(self._folders)}")
        if len(wanted) > len(self._places):
            raise ValueError(
                f"expected at most {len(self._places)} languages in a batch, one for each expert in memory, got {len(wanted)}: "
                "raise the capacity, or make batches of fewer languages"
            )
        for lang in wanted:
            if lang in self._place_of:
                self._place_of.move_to_end(lang)
        for lang in wanted:
            if lang not in self._place_of:
                self._read(lang)
        return [self._place_of[lang] for lang in langs]

    def _read(self, lang: str) -> None:
        adapter = Adapter.read(self._folders[lang])
        full = len(self._place_of) == len(self._places)
        place = self._place_of.popitem(last=False)[1] if full else len(self._place_of)
        load_expert(self._bank, self._places[place], adapter)
        self._place_of[lang] = place
        self.reads += 1

    def store_in(self, precision: torch.dtype) -> None:
        """As ``ExpertBank.store_in``."""
        self._bank.store_in(precision)

    def routed(self, index: Tensor | None, weights: Tensor | None = None) -> AbstractContextManager[None]:
        """As ``ExpertBank.routed``, of the places that ``indices`` gave last."""
        return self._bank.routed(index, weights)

    def routed_steps(self, index: Tensor) -> AbstractContextManager[None]:
        """As ``ExpertBank.routed_steps``, of the places that ``indices`` gave last."""
        return self._bank.routed_steps(index)


def _shape(folders: Iterable[Path]) -> tuple[int, tuple[str, ...]]:
    """The largest rank and the targets of adapters, from the heads of their files."""
    rank, targets = 0, set()
    for folder in folders:
        with safe_open(folder / WEIGHTS, "pt") as file:
            for key in file.keys():
                name, dot, _ = key.partition(".lora_A.")
                if dot:
                    rank = max(rank, file.get_slice(key).get_shape()[0])
                    targets.add(name.rpartition(".")[2])
    return rank, tuple(sorted(targets))

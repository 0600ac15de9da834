"""Experts of many languages on disk, a bounded number of them in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from espnet_lole.lole.adapters import Adapter, adapters_in, load_adapter
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts
from espnet_lole.lole.peft_files import read_shapes
from espnet_lole.whisper.model import Whisper


class ExpertCache:
    """Experts of which at most ``capacity`` are in memory; one read from disk replaces the least recently used.

    Args:
        whisper: frozen; its target linears are replaced by ``ExpertLinear``.
        folder: ``peft`` adapters, a subfolder for each language.
        capacity: number of experts in memory, which is also the maximum number of languages in a batch.

    Raises:
        FileNotFoundError: the folder has no adapters.
        ValueError: the capacity is below 1.
    """

    def __init__(self, whisper: Whisper, folder: Path, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"the capacity must be 1 expert or more, got {capacity}")
        self._folders = {lang: folder / lang for lang in adapters_in(folder)}
        if not self._folders:
            raise FileNotFoundError(f"expected adapters in {folder}, a subfolder for each language, but there are none")
        rank, targets = _shape(self._folders.values())
        self._slots = [f"slot{i}" for i in range(min(capacity, len(self._folders)))]
        self._experts = LoRAExperts(whisper, self._slots, ExpertConfig(rank, alpha=2.0 * rank, targets=targets))
        self._slot_of: OrderedDict[str, int] = OrderedDict()  # languages in memory, the least recently used first
        self.reads = 0
        """Number of experts read from disk."""

    @property
    def whisper(self) -> Whisper:
        """The Whisper that the experts adapt."""
        return self._experts.whisper

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages with an expert on disk."""
        return tuple(self._folders)

    def indices(self, langs: Sequence[str]) -> list[int]:
        """Return the slot of each utterance's expert, after reading those that are not in memory.

        Raises:
            ValueError: a language has no expert, or there are more languages than slots.
        """
        needed = list(dict.fromkeys(langs))
        if unknown := [lang for lang in needed if lang not in self._folders]:
            raise ValueError(f"there is no expert for {unknown[0]!r}; there are experts for {' '.join(self._folders)}")
        if len(needed) > len(self._slots):
            raise ValueError(
                f"a batch has {len(needed)} languages, but only {len(self._slots)} experts may be in memory: "
                "raise max_loaded_experts, or transcribe fewer languages at once"
            )
        for lang in needed:
            if lang in self._slot_of:
                self._slot_of.move_to_end(lang)
        for lang in needed:
            if lang not in self._slot_of:
                self._read(lang)
        return [self._slot_of[lang] for lang in langs]

    def _read(self, lang: str) -> None:
        """Read an expert into a free slot, or into that of the least recently used one."""
        full = len(self._slot_of) == len(self._slots)
        slot = next(iter(self._slot_of.values())) if full else len(self._slot_of)
        load_adapter(self._experts, self._slots[slot], Adapter.read(self._folders[lang]))
        if full:
            self._slot_of.popitem(last=False)
        self._slot_of[lang] = slot
        self.reads += 1

    def cast_(self, dtype: torch.dtype) -> ExpertCache:
        """See ``LoRAExperts.cast_``."""
        self._experts.cast_(dtype)
        return self

    def activate(self, index: Tensor | Sequence[int] | None) -> AbstractContextManager[None]:
        """See ``LoRAExperts.activate``, with the slots that ``indices`` returned last."""
        return self._experts.activate(index)


def _shape(folders: Iterable[Path]) -> tuple[int, tuple[str, ...]]:
    """Read the largest rank and the targets of adapters from the headers of their files."""
    shapes = {(linear.rpartition(".")[2], pair["A"][0]) for f in folders for linear, pair in read_shapes(f).items()}
    return max(rank for _, rank in shapes), tuple(sorted({target for target, _ in shapes}))

"""The systems: the only place where their names stand."""

from __future__ import annotations

SYSTEMS = ("zero_shot", "experts", "mole", "student", "multilingual", "full", "espnet", "espnet_whisper")
"""The backbone alone, the paper's three systems, one LoRA for all languages, full fine-tuning, ESPnet's own models."""

SCENARIOS = {system: ("aware", "agnostic") for system in SYSTEMS} | {"espnet": ("agnostic",)}
"""System -> scenarios it can decode: the language is given (aware) or predicted (agnostic)."""

TRAINED_HERE = ("experts", "mole", "student", "multilingual", "full")
"""Systems that this package trains."""

SCORED_DECODING = "decode.yaml"
"""File in a system's folder: the decoding options that it was scored with, which are the default afterwards."""


def base_system(name: str) -> str:
    """Return the system of a variant, whose name has a suffix: ``student`` for ``student_long``.

    Raises:
        ValueError: there is no such system.
    """
    bases = [system for system in SYSTEMS if name == system or name.startswith(f"{system}_")]
    if not bases:
        raise ValueError(f"expected a system out of {' '.join(SYSTEMS)}, or one with a _suffix, got {name!r}")
    return max(bases, key=len)

"""LoRA language experts on a frozen Whisper, for ESPnet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espnet_lole.inference.speech2text import Speech2Text

__all__ = ["Speech2Text"]


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first asked for: PyTorch takes seconds."""
    if name == "Speech2Text":
        from espnet_lole.inference.speech2text import Speech2Text

        return Speech2Text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

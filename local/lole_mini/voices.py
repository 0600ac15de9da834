"""eSpeak NG from the ``espeakng-loader`` wheel, driven through ctypes: text and voice to samples."""

from __future__ import annotations

import ctypes
import zlib
from dataclasses import dataclass
from functools import lru_cache

import espeakng_loader
import numpy as np

VOICES = {"de": "de", "en": "en-us", "es": "es", "fr": "fr", "it": "it", "ru": "ru", "tr": "tr", "zh": "cmn"}
"""eSpeak's voice of each language of the corpus."""

_SYNCHRONOUS, _UTF8, _RATE, _PITCH, _RANGE = 2, 1, 1, 3, 4  # espeak_AUDIO_OUTPUT, flags and espeak_PARAMETER of speak_lib.h
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Speaker:
    """One speaker: a voice variant of eSpeak (``f1``, ``klatt2``, ...), words a minute, pitch and its range (0-100)."""

    variant: str
    rate: int
    pitch: int
    range: int


class Synthesizer:
    """The synthesiser; eSpeak keeps global state and hangs when it is started twice: take ``synthesizer()``.

    Raises:
        RuntimeError: the library cannot start.
    """

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG cannot start from {espeakng_loader.get_library_path()}: reinstall espeakng-loader")
        self._chunks: list[np.ndarray] = []
        self._voice = ""
        self._callback = _CALLBACK(self._collect)  # kept: the library holds only a bare pointer
        self._lib.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: ctypes._Pointer, count: int, _events: int) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, lang: str, speaker: Speaker) -> np.ndarray:
        """Speak a text.

        Returns:
            Samples at ``sample_rate``, float32 in [-1, 1], shape (T,).

        Raises:
            ValueError: eSpeak has no such voice.
            RuntimeError: eSpeak made no sound of the text.
        """
        voice = f"{VOICES[lang]}+{speaker.variant}"
        if voice != self._voice and self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"expected a voice of eSpeak NG, got {voice!r}")
        self._voice = voice
        for parameter, value in ((_RATE, speaker.rate), (_PITCH, speaker.pitch), (_RANGE, speaker.range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        data = text.encode()
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(zlib.crc32(data)))  # breathy voices; the default seed is the time
        self._lib.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        self._lib.espeak_Synchronize()
        if not self._chunks:
            raise RuntimeError(f"eSpeak NG made no sound of {text!r} in voice {voice!r}")
        return np.concatenate(self._chunks).astype(np.float32) / 32768


@lru_cache(maxsize=1)
def synthesizer() -> Synthesizer:
    """The one synthesiser of this process."""
    return Synthesizer()

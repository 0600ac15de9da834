"""Speech synthesis by eSpeak NG from the `espeakng-loader` wheel, through ctypes."""

from __future__ import annotations

import ctypes
import zlib
from dataclasses import dataclass
from functools import lru_cache

import espeakng_loader
import numpy as np

VOICES = {"de": "de", "en": "en-us", "es": "es", "fr": "fr", "it": "it", "ru": "ru", "tr": "tr", "zh": "cmn"}
"""eSpeak's voice for each language of the corpus."""

# espeak_AUDIO_OUTPUT, flags and espeak_PARAMETER of speak_lib.h
_SYNCHRONOUS, _UTF8, _RATE, _PITCH, _RANGE = 2, 1, 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Speaker:
    """A speaker: a voice variant of eSpeak (`f1`, `klatt2`, ...), words per minute, pitch and pitch range (0-100)."""

    variant: str
    rate: int
    pitch: int
    range: int


class Synthesizer:
    """The synthesizer. eSpeak has global state and hangs when it is started twice: use `synthesizer()`.

    Raises:
        RuntimeError: the library cannot start.
    """

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.sample_rate <= 0:
            library = espeakng_loader.get_library_path()
            raise RuntimeError(f"eSpeak NG cannot start from {library}: reinstall espeakng-loader")
        self._chunks: list[np.ndarray] = []
        self._voice = ""
        self._callback = _CALLBACK(self._collect)  # a reference, as the library has only a bare pointer
        self._lib.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: ctypes._Pointer, count: int, _events: int) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, lang: str, speaker: Speaker) -> np.ndarray:
        """Synthesize a text.

        Returns:
            Samples at `sample_rate`, float32 in [-1, 1], (T,).

        Raises:
            ValueError: eSpeak has no such voice.
            RuntimeError: eSpeak returned no samples.
        """
        voice = f"{VOICES[lang]}+{speaker.variant}"
        if voice != self._voice and self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"expected a voice of eSpeak NG, got {voice!r}")
        self._voice = voice
        for parameter, value in ((_RATE, speaker.rate), (_PITCH, speaker.pitch), (_RANGE, speaker.range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        data = text.encode()
        # Seed the noise of breathy voices; the default seed is the time
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(zlib.crc32(data)))
        self._lib.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        self._lib.espeak_Synchronize()
        if not self._chunks:
            raise RuntimeError(f"eSpeak NG returned no samples for {text!r} in voice {voice!r}")
        return np.concatenate(self._chunks).astype(np.float32) / 32768


@lru_cache(maxsize=1)
def synthesizer() -> Synthesizer:
    """Return the only synthesizer of this process."""
    return Synthesizer()

"""Speech detection by Silero VAD: silence, noise and music are not transcribed."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from espnet_lole.whisper.features import MIN_SAMPLES

WARM_UP = 8192
"""Samples that the detector hears before a recording, from the recording itself: without them it misses short words."""

MIN_GAP_MS = 100
"""Silence that ends the shortest speech: several short sounds with gaps, such as drums, are none."""


@dataclass(frozen=True)
class VadConfig:
    """Options of the speech detector, by the names of Silero VAD.

    Attributes:
        threshold: probability from which audio is speech; 0: no detection, everything is transcribed.
        min_speech_duration_ms: shorter speech is ignored.
        min_silence_duration_ms: longer silence is left out and ends a segment.
        speech_pad_ms: audio that is kept before and after speech.
    """

    threshold: float = 0.4
    min_speech_duration_ms: int = 250
    min_silence_duration_ms: int = 1000
    speech_pad_ms: int = 400

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"expected a threshold of vad from 0 to below 1, got {self.threshold}")
        if min(self.min_speech_duration_ms, self.min_silence_duration_ms, self.speech_pad_ms) < 0:
            raise ValueError(f"expected durations of vad of 0 ms or more, got {self}")


class SpeechDetector:
    """Silero VAD on the CPU, with the weights of its package.

    Args:
        config: thresholds.
    """

    def __init__(self, config: VadConfig) -> None:
        threads = torch.get_num_threads()
        import silero_vad  # sets PyTorch to one thread

        torch.set_num_threads(threads)
        self._config, self._model = config, silero_vad.load_silero_vad(sequence=True)
        self._find_spans = silero_vad.get_speech_timestamps_from_probs

    def spans(self, samples: np.ndarray) -> list[tuple[int, int]]:
        """Find speech.

        Args:
            samples: at 16 kHz in [-1, 1], shape (S,).

        Returns:
            First sample and end of each stretch of speech with its padding, in order, without overlaps.
        """
        spans = self._spans_after(samples[:WARM_UP], samples)
        return spans or self._spans_after(samples[-WARM_UP:], samples)

    def _spans_after(self, warm_up: np.ndarray, samples: np.ndarray) -> list[tuple[int, int]]:
        """Find speech in a recording that is heard after a warm-up, which is repeated to its length."""
        heard = np.concatenate([np.resize(warm_up, WARM_UP), samples])
        probabilities = self._model.audio_forward(heard).tolist()  # one for 32 ms
        options = {**asdict(self._config), "audio_length_samples": len(heard)}
        spans = self._find_spans(probabilities, **options)
        options |= {"min_silence_duration_ms": MIN_GAP_MS, "speech_pad_ms": 0}
        certain = [span for span in self._find_spans(probabilities, **options) if span["end"] > WARM_UP]
        spans = [s for s in spans if any(s["start"] < c["end"] and c["start"] < s["end"] for c in certain)]
        spans = [(max(span["start"] - WARM_UP, 0), span["end"] - WARM_UP) for span in spans]
        return [(start, end) for start, end in spans if end - start >= MIN_SAMPLES]

"""Error rates of a merged Whisper where it will run: in the pipeline of transformers with its default options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import pipeline

from espnet_lole.data.kaldi import KaldiDir
from espnet_lole.evaluation.normalize import wer_or_cer
from espnet_lole.evaluation.rates import count, make_pairs
from espnet_lole.inference.test_sets import read_test_set
from espnet_lole.whisper.features import SAMPLE_RATE

SCENARIO = "transformers"
"""Name of these figures among the scenarios of a system's error rates."""


def error_rates(folder: Path, test_dirs: Sequence[Path], languages: Sequence[str]) -> dict[str, dict[str, float]]:
    """Measure the error rates of a Whisper of transformers, the language given.

    Args:
        folder: of the Whisper.
        test_dirs: formatted test sets, ``dump/raw/<set>``; utterances of other languages are left out.
        languages: that it transcribes.

    Returns:
        Scenario -> language -> WER or CER in percent; empty without test sets.

    Raises:
        ValueError: the test sets have no utterance of these languages.
    """
    if not test_dirs:
        return {}
    recognize = pipeline("automatic-speech-recognition", str(folder), dtype=torch.float32)
    references: dict[str, dict[str, str]] = {lang: {} for lang in languages}
    hypotheses: dict[str, dict[str, str]] = {lang: {} for lang in languages}
    for test_dir in test_dirs:
        texts = KaldiDir.read(test_dir).text
        for audio in read_test_set(test_dir):
            if audio.language in references:
                sample = {"raw": audio.load().numpy(), "sampling_rate": SAMPLE_RATE}
                text = recognize(sample, generate_kwargs={"language": audio.language})["text"]
                references[audio.language][audio.id] = texts[audio.id]
                hypotheses[audio.language][audio.id] = text
    rates = {}
    for lang in filter(references.get, languages):
        pairs = make_pairs(references[lang], hypotheses[lang], dict.fromkeys(references[lang], lang), folder)
        rates[lang] = count(pairs, wer_or_cer(lang)).error_rate
    if not rates:
        raise ValueError(f"expected utterances of {' '.join(languages)} in {test_dirs[0]}, got none: name their sets")
    return {SCENARIO: rates}

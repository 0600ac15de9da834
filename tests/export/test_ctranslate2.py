"""faster-whisper runs a converted system, and finds the texts that the system has with faster-whisper's padding."""

import numpy as np
import pytest
import torch
from systems import make_spoken_student, speak

from espnet_lole.cli.main import main
from espnet_lole.inference.search import SearchConfig, search
from espnet_lole.whisper.checkpoint import load_whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

NEEDS = "needs the extra formats: pip install 'espnet_lole[formats]'"


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("merge_first", [False, True])
def test_faster_whisper_finds_the_same_texts_and_times_of_words(tmp_path, merge_first):
    pytest.importorskip("ctranslate2", reason=NEEDS)
    faster_whisper = pytest.importorskip("faster_whisper", reason=NEEDS)
    student = make_spoken_student(tmp_path / "student")
    assert main(["export", str(student), str(tmp_path / "merged"), "--format", "merged"]) == 0
    source = tmp_path / "merged" if merge_first else student
    assert main(["export", str(source), str(tmp_path / "ct2"), "--format", "ctranslate2"]) == 0
    whisper, tokenizer = load_whisper(str(tmp_path / "merged")), WhisperTokenizer(51865)
    converted = faster_whisper.WhisperModel(str(tmp_path / "ct2"), device="cpu", compute_type="float32")
    options = {"beam_size": 1, "temperature": 0.0, "without_timestamps": True, "suppress_tokens": []}
    for lang, speech in speak():
        segments, _ = converted.transcribe(speech, language=lang, **options)
        heard = torch.from_numpy(np.pad(speech, (0, 160)))[None]  # faster-whisper adds a frame of silence, too
        encoded = whisper.finish(whisper.embed_speech(heard, torch.tensor([heard.shape[1]]), "zeros"))
        best = search(whisper, encoded, torch.tensor([tokenizer.prompt(lang)]), tokenizer, SearchConfig())[0]
        text = tokenizer.decode(best.tokens)
        assert text and "".join(segment.text for segment in segments).strip() == text
    segments, _ = converted.transcribe(speech, language=lang, word_timestamps=True, **options)
    words = [word for segment in segments for word in segment.words]
    assert words and all(0 <= word.start <= word.end <= len(speech) / 16_000 + 1 for word in words)

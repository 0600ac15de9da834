"""faster-whisper runs a converted system and finds the same texts."""

import pytest
from systems import make_spoken_student, speak

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main

NEEDS = "needs the extra formats: pip install 'espnet_lole[formats]'"


@pytest.mark.slow
@pytest.mark.parametrize("merge_first", [False, True])
def test_faster_whisper_finds_the_same_texts(tmp_path, merge_first):
    pytest.importorskip("ctranslate2", reason=NEEDS)
    faster_whisper = pytest.importorskip("faster_whisper", reason=NEEDS)
    source = student = make_spoken_student(tmp_path / "student")
    if merge_first:
        source = tmp_path / "merged"
        assert main(["export", str(student), str(source), "--format", "merged"]) == 0
    assert main(["export", str(source), str(tmp_path / "ct2"), "--format", "ctranslate2"]) == 0
    s2t = Speech2Text.from_pretrained(student, device="cpu", vad_threshold=0)
    converted = faster_whisper.WhisperModel(str(tmp_path / "ct2"), device="cpu", compute_type="float32")
    for lang, speech in speak():
        segments, _ = converted.transcribe(
            speech, language=lang, beam_size=1, temperature=0.0, without_timestamps=True, max_new_tokens=100,
            suppress_tokens=[], suppress_blank=False, condition_on_previous_text=False,
        )  # fmt: skip
        text = s2t(speech, lang)[0][0]
        assert text and "".join(segment.text for segment in segments).strip() == text

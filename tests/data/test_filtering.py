"""Training sets lose what Whisper cannot be trained on, with its reason, but never a whole language."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_lole.data.filtering import filter_dir
from espnet_lole.data.formatting import format_dir
from espnet_lole.data.kaldi import KaldiDir, read_table, write_table


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own folder."""
    monkeypatch.chdir(tmp_path)


def formatted(seconds: dict[str, float]) -> Path:
    """Format utterances `<lang>_x` of these lengths."""
    Path("wav").mkdir()
    for utt, length in seconds.items():
        soundfile.write(f"wav/{utt}.wav", np.zeros(round(length * 16000)), 16000)
    wav, utt2lang = {utt: f"wav/{utt}.wav" for utt in seconds}, {utt: utt[:2] for utt in seconds}
    folder = Path("src")
    folder.mkdir()
    KaldiDir(folder, wav, dict.fromkeys(seconds, "x"), utt2lang=utt2lang).write(folder)
    format_dir(folder, "org")
    return Path("org")


def test_utterances_are_selected_by_duration_and_language() -> None:
    org = formatted({"de_a": 0.05, "de_b": 0.1, "de_c": 0.3, "de_d": 0.4, "en_a": 0.2})
    (tally,) = filter_dir(org, "train", 0.1, 0.3, ["de"])
    assert (tally.split, tally.language, tally.utterances, tally.speakers) == ("train", "de", 2, 2)
    assert tally.seconds == pytest.approx(0.4)
    assert tally.dropped == {"de_a": "shorter than 0.1 s: 0.05 s", "de_d": "longer than 0.3 s: 0.40 s"}
    assert read_table("train/skipped") == tally.dropped
    assert read_table("train/utt2num_samples") == {"de_b": "1600", "de_c": "4800"}
    assert sorted(path.name for path in Path("train").iterdir()) == (
        ".espnet_lole audio_format feats_type skipped spk2utt text utt2lang utt2num_samples utt2spk wav.scp".split()
    )


def test_transcripts_longer_than_the_decoder_are_dropped() -> None:
    org = formatted({"de_a": 0.2, "de_b": 0.2, "de_c": 0.2})
    write_table(org / "text", {"de_a": "x" + " x" * 444, "de_b": "x" + " x" * 443, "de_c": "kurz"})
    (tally,) = filter_dir(org, "train", 0.1, 30)
    assert tally.dropped == {"de_a": "transcript over 444 tokens: 445"}


def test_utterances_missing_in_a_table_are_dropped() -> None:
    org = formatted({"de_a": 0.2, "de_b": 0.2, "de_c": 0.2})
    write_table(org / "text", {"de_a": "x", "de_b": "x"})
    write_table(org / "utt2num_samples", {"de_a": "3200", "de_c": "3200"})
    (tally,) = filter_dir(org, "train", 0.1, 30)
    assert tally.dropped == {"de_b": "not in utt2num_samples", "de_c": "not in text"}


def test_errors_leave_no_directory() -> None:
    org = formatted({"de_a": 0.05, "en_a": 0.2})
    message = r"expected utterances in 'de' to train on, none of 1 fits: 1 shorter than 0.1 s \(de_a\); change --min"
    with pytest.raises(ValueError, match=message):
        filter_dir(org, "train", 0.1, 30)
    for bounds in ((2, 1), (0.02, 30), (0.1, 31)):
        with pytest.raises(ValueError, match="expected 0.025 <= --min_wav_duration <= --max_wav_duration <= 30 s"):
            filter_dir(org, "train", *bounds)
    with pytest.raises(ValueError, match="expected languages out of de, en, got fr"):
        filter_dir(org, "train", 0.1, 30, ["fr"])
    with pytest.raises(ValueError, match="is, contains or lies in"):
        filter_dir(org, org, 0.1, 30)
    with pytest.raises(FileNotFoundError, match="expected a file src/utt2num_samples, but there is none"):
        filter_dir("src", "train", 0.1, 30)
    (org / "utt2lang").write_text("")
    write_table(org / "utt2num_samples", {"de_a": "1"})
    with pytest.raises(ValueError, match="expected utterances with a language"):
        filter_dir(org, "train", 0.1, 30)
    assert not Path("train").exists()

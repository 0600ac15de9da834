"""Speed perturbation against a resampling done by hand."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_lole.data.formatting import format_dir
from espnet_lole.data.kaldi import KaldiDir, KaldiSegment, read_table
from espnet_lole.data.perturbation import perturb_dir

RATE, HZ = 16000, 440.0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write a directory with a sine of a second as utterance de_a of speaker de_s."""
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * HZ * np.arange(RATE) / RATE), RATE)
    (tmp_path / "train").mkdir()
    tables = ({"de_a": str(tmp_path / "a.wav")}, {"de_a": "eins"}, {"de_a": "de_s"}, {"de_a": "de"})
    KaldiDir(tmp_path / "train", *tables).write(tmp_path / "train")
    return tmp_path / "train"


def pitch(path: str) -> float:
    """Return the strongest frequency."""
    samples, rate = soundfile.read(path)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * rate / len(samples)


def test_copies_are_shorter_and_higher_by_their_factor(source: Path, tmp_path: Path) -> None:
    (tally,) = perturb_dir(source, tmp_path / "train_sp", ["0.9", "1.0", "1.1"])
    assert (tally.split, tally.language, tally.utterances, tally.speakers) == ("train", "de", 3, 3)
    speakers = {"de_a": "de_s", "sp0.9-de_a": "sp0.9-de_s", "sp1.1-de_a": "sp1.1-de_s"}
    assert read_table(tmp_path / "train_sp/utt2spk") == speakers
    assert set(read_table(tmp_path / "train_sp/text").values()) == {"eins"}
    format_dir(tmp_path / "train_sp", tmp_path / "dump")
    lengths, files = read_table(tmp_path / "dump/utt2num_samples"), read_table(tmp_path / "dump/wav.scp")
    for utt, factor in {"de_a": 1.0, "sp0.9-de_a": 0.9, "sp1.1-de_a": 1.1}.items():
        assert int(lengths[utt]) == pytest.approx(RATE / factor, abs=1)
        assert pitch(files[utt]) == pytest.approx(HZ * factor, abs=2)
    assert read_table(tmp_path / "dump/utt2lang")["sp0.9-de_a"] == "de"


def test_segments_are_cut_before_the_speed_changes(source: Path, tmp_path: Path) -> None:
    kaldi = KaldiDir.read(source)
    kaldi.wav, kaldi.segments = {"r": kaldi.wav["de_a"]}, {"de_a": KaldiSegment("r", 0.25, 0.75)}
    kaldi.write(source)
    (tally,) = perturb_dir(source, tmp_path / "train_sp", ["1.1"])
    assert (tally.utterances, tally.speakers, tally.language) == (1, 1, "de")
    format_dir(tmp_path / "train_sp", tmp_path / "dump")
    assert int(read_table(tmp_path / "dump/utt2num_samples")["sp1.1-de_a"]) == pytest.approx(8000 / 1.1, abs=1)


@pytest.mark.parametrize("factors", [["fast"], ["0.1"], ["nan"]])
def test_factors_below_half_or_above_two_are_refused(source: Path, tmp_path: Path, factors: list[str]) -> None:
    with pytest.raises(ValueError, match="--factors: expected speed factors from 0.5 to 2, got"):
        perturb_dir(source, tmp_path / "x", factors)


def test_repeated_factors_and_repeated_perturbation_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected factors that differ, got 1 1.0"):
        perturb_dir(source, tmp_path / "x", ["1", "1.0"])
    perturb_dir(source, tmp_path / "sp", ["0.9"])
    with pytest.raises(ValueError, match="is perturbed already"):
        perturb_dir(tmp_path / "sp", tmp_path / "x", ["0.9"])

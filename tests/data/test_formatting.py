"""Any audio becomes 16 kHz mono; what cannot is dropped with its reason."""

from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
from conftest import room_for

from espnet_lole.data.formatting import format_dir
from espnet_lole.data.kaldi import KaldiDir, KaldiSegment, read_table

HZ = 440.0


def sine(seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    """Return a sine (T,)."""
    return level * np.sin(2 * np.pi * HZ * np.arange(round(seconds * rate)) / rate)


def make(folder: Path, wav: dict[str, str], segments: dict[str, KaldiSegment] | None = None) -> Path:
    """Write a Kaldi directory in German with these entries."""
    folder.mkdir()
    utts = list(wav if segments is None else segments)
    text, utt2spk, utt2lang = (dict.fromkeys(utts, value) for value in ("hallo", "s", "de"))
    KaldiDir(folder, wav, text, utt2spk, utt2lang, segments).write(folder)
    return folder


def check_sine(path: str, seconds: float, level: float = 0.5, slack: float = 0.0) -> None:
    """Check a formatted file: 16 kHz, mono, 16 bit, of this length, with a sine of this level at HZ."""
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    samples, _ = soundfile.read(path)
    assert abs(len(samples) / 16000 - seconds) <= slack + 1 / 16000
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert abs(np.argmax(spectrum) * 16000 / len(samples) - HZ) < 3
    assert abs(np.sqrt(2 * np.mean(samples**2)) - level) < 0.05


@pytest.mark.parametrize(("name", "rate"), [("a.wav", 44100), ("a.flac", 8000), ("a.ogg", 48000), ("a.mp3", 44100)])
def test_every_format_and_rate_becomes_16_khz_flac(tmp_path: Path, name: str, rate: int) -> None:
    soundfile.write(tmp_path / name, sine(0.5, rate), rate)
    (tally,) = format_dir(make(tmp_path / "src", {"u": str(tmp_path / name)}), tmp_path / "dst")
    assert (tally.language, tally.utterances, tally.speakers, tally.dropped) == ("de", 1, 1, {})
    assert tally.seconds == pytest.approx(0.5, abs=0.06)
    entry = read_table(tmp_path / "dst/wav.scp")["u"]
    assert entry == str(tmp_path / "dst/data/u.flac")
    check_sine(entry, 0.5, slack=0.06 if name.endswith("mp3") else 0.0)
    assert int(read_table(tmp_path / "dst/utt2num_samples")["u"]) == soundfile.info(entry).frames


def test_stereo_is_averaged_and_tables_are_written(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([sine(0.5, 44100, 0.8), sine(0.5, 44100, 0.0)], axis=1), 44100)
    format_dir(make(tmp_path / "src", {"u/1": str(tmp_path / "a.wav")}), tmp_path / "dst", audio_format="wav")
    check_sine(str(tmp_path / "dst/data/u%2F1.wav"), 0.5, level=0.4)
    tables = (
        ".espnet_lole audio_format feats_type skipped spk2utt text utt2lang utt2num_samples utt2spk wav.scp".split()
    )
    assert sorted(path.name for path in (tmp_path / "dst").iterdir() if path.is_file()) == tables
    assert (tmp_path / "dst/audio_format").read_text() == "wav\n"
    assert (tmp_path / "dst/spk2utt").read_text() == "s u/1\n"


def test_16_bit_samples_stay_as_they_are(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 4000).astype(np.int16)
    kaldiio.save_ark(str(tmp_path / "a.ark"), {"u": (16000, samples)}, scp=str(tmp_path / "a.scp"))
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    wav = {"file": f"{tmp_path}/a.wav", "pipe": f"cat {tmp_path}/a.wav |", "ark": read_table(tmp_path / "a.scp")["u"]}
    assert format_dir(make(tmp_path / "src", wav), tmp_path / "dst")[0].utterances == 3
    for entry in read_table(tmp_path / "dst/wav.scp").values():
        np.testing.assert_array_equal(soundfile.read(entry, dtype="int16")[0], samples)


def test_arks_of_stereo_or_flac_are_read(tmp_path: Path) -> None:
    tone = sine(0.5, 16000)
    ints = (np.stack([tone, tone], axis=1) * 32767).astype(np.int16)
    kaldiio.save_ark(str(tmp_path / "a.ark"), {"x": (16000, ints), "u": (16000, ints)}, scp=str(tmp_path / "a.scp"))
    options = {"scp": str(tmp_path / "b.scp"), "write_function": "soundfile", "write_kwargs": {"format": "FLAC"}}
    kaldiio.save_ark(str(tmp_path / "b.ark"), {"u": (ints, 16000)}, **options)
    wav = {"a": read_table(tmp_path / "a.scp")["u"], "b": read_table(tmp_path / "b.scp")["u"]}
    assert format_dir(make(tmp_path / "src", wav), tmp_path / "dst")[0].utterances == 2
    for entry in read_table(tmp_path / "dst/wav.scp").values():
        check_sine(entry, 0.5)


def test_segments_are_cut_clipped_or_dropped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.concatenate([np.zeros(8000), sine(1.0, 8000)]), 8000)
    times = {"in": (1.2, 1.7), "over": (1.5, 2.4), "rest": (1, -1), "out": (5, 6), "past": (1, 2.6), "none": (1, 1)}
    segments = {utt: KaldiSegment("r", start, end) for utt, (start, end) in times.items()}
    (tally,) = format_dir(make(tmp_path / "src", {"r": str(tmp_path / "a.wav")}, segments), tmp_path / "dst")
    assert tally.dropped == {
        "none": "no samples: the audio or the segment is empty",
        "out": "segment beyond its recording: ends at 6.00 s, the recording at 2.00 s",
        "past": "segment beyond its recording: ends at 2.60 s, the recording at 2.00 s",
    }
    for utt, seconds in (("in", 0.5), ("over", 0.5), ("rest", 1.0)):
        check_sine(str(tmp_path / f"dst/data/{utt}.flac"), seconds)
    assert not (tmp_path / "dst/segments").exists()


def test_what_cannot_be_read_is_dropped_with_its_reason(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "good.wav", sine(0.1, 16000), 16000)
    soundfile.write(tmp_path / "nosamples.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "junk.wav").write_text("no audio")
    (tmp_path / "empty.wav").write_text("")
    names = ("good", "nosamples", "nan", "junk", "empty", "missing")
    wav = {name: str(tmp_path / f"{name}.wav") for name in names}
    wav |= {"ark": f"{tmp_path}/junk.wav:2", "noark": "/nowhere.ark:2"}
    wav |= {"pipe": "echo why >&2; exit 3 |", "noaudio": "true |"}
    src = make(tmp_path / "src", wav)
    with (src / "text").open("a") as text:
        text.write("extra hallo\n")
    tallies = {tally.language: tally for tally in format_dir(src, tmp_path / "dst")}
    skipped = read_table(tmp_path / "dst/skipped")
    assert tallies["de"].utterances == 1 and tallies["?"].dropped == {"extra": "not in wav.scp"}
    assert tallies["de"].dropped | tallies["?"].dropped == skipped
    assert {utt: why.partition(":")[0] for utt, why in skipped.items()} == {
        "nosamples": "no samples",
        "nan": "not finite",
        "junk": "cannot be decoded",
        "ark": "cannot be decoded",
        "noaudio": "empty file",
        "empty": "empty file",
        "missing": "missing file",
        "noark": "missing file",
        "pipe": "command failed",
        "extra": "not in wav.scp",
    }
    assert skipped["pipe"].startswith("command failed: exit status 3") and skipped["pipe"].endswith("why")
    assert set(read_table(tmp_path / "dst/text")) == {"good"}


def test_paths_with_spaces_are_read(tmp_path: Path) -> None:
    (tmp_path / "my data").mkdir()
    soundfile.write(tmp_path / "my data/a b.wav", sine(0.1, 16000), 16000)
    wav = {"file": f"{tmp_path}/my data/a b.wav", "pipe": f"cat '{tmp_path}/my data/a b.wav' |"}
    assert format_dir(make(tmp_path / "my data/src", wav), tmp_path / "my data/dst")[0].utterances == 2


def test_test_audio_that_is_too_short_is_written_and_reported(tmp_path: Path) -> None:
    wav = {}
    for name, samples in (("short", 399), ("least", 400), ("most", 480000), ("long", 480001)):
        wav[name] = str(tmp_path / f"{name}.wav")
        soundfile.write(wav[name], np.zeros(samples), 16000)
    src = make(tmp_path / "src", wav)
    (tally,) = format_dir(src, tmp_path / "test_de")
    assert (tally.split, tally.utterances, tally.too_short) == ("test", 4, ("short",))
    assert format_dir(src, tmp_path / "train")[0].too_short == ()


def test_a_language_without_readable_audio_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sine(0.1, 16000), 16000)
    src = make(tmp_path / "src", {"u": str(tmp_path / "a.wav"), "v": "/nowhere.wav", "w": "/nowhere.wav"})
    (src / "utt2lang").write_text("u de\nv en\nw en\n")
    message = (
        r"src: expected audio in 'en', none of 2 utterances can be used: 2 missing file \(v, ...\); "
        r"first: v missing file: /nowhere.wav; correct its source, or leave the language out with --langs"
    )
    with pytest.raises(ValueError, match=message):
        format_dir(src, tmp_path / "dst")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "src"]
    soundfile.write(tmp_path / "b.wav", sine(0.1, 16000), 16000)
    (src / "wav.scp").write_text((src / "wav.scp").read_text().replace("/nowhere", str(tmp_path / "b")))
    assert [tally.utterances for tally in format_dir(src, tmp_path / "dst")] == [1, 2]


def test_no_utterance_or_no_language_is_an_error(tmp_path: Path) -> None:
    src = make(tmp_path / "src", {"u": "/nowhere.wav"})
    (src / "utt2lang").unlink()
    with pytest.raises(ValueError, match=r"none of 1 utterances can be used: 1 not in utt2lang \(u\)"):
        format_dir(src, tmp_path / "dst")
    with pytest.raises(ValueError, match="wav.scp and text are empty"):
        format_dir(make(tmp_path / "none", {}), tmp_path / "dst")


def test_audio_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, 1600), 16000)
    with room_for(1000), pytest.raises(OSError, match=f"cannot write {tmp_path / 'dst'}: File too large"):
        format_dir(make(tmp_path / "src", {"u": str(tmp_path / "a.wav")}), tmp_path / "dst")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "src"]


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    src = make(tmp_path / "src", {"u": "/nowhere.wav"})
    with pytest.raises(ValueError, match="expected an audio format of flac, wav, got 'mp3'"):
        format_dir(src, tmp_path / "dst", audio_format="mp3")
    with pytest.raises(ValueError, match="expected nj of at least 1, got 0"):
        format_dir(src, tmp_path / "dst", nj=0)
    with pytest.raises(ValueError, match="is, contains or lies in"):
        format_dir(src, src)


def test_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", sine(0.1, 16000), 16000)
    format_dir(make(tmp_path / "src", {"u": str(tmp_path / "a.wav")}), tmp_path / "dst")
    assert "1/1" in capsys.readouterr().err

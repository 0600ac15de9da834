"""Audio is read whole and as it is, or refused with the reason."""

import io
import struct
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from espnet_lole.data.audio import AudioError, read_audio, resample, to_int16
from espnet_lole.data.kaldi import read_table


def noise(seconds: float, rate: int = 16000) -> np.ndarray:
    """Return noise (T,)."""
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate))


def test_a_pipe_whose_header_lacks_the_length_is_read_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0.5), 16000)
    raw = bytearray((tmp_path / "a.wav").read_bytes())
    for size in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000):
        raw[4:8] = raw[40:44] = struct.pack("<I", size)
        (tmp_path / "b.wav").write_bytes(raw)
        samples, rate = read_audio(f"cat {tmp_path}/b.wav |")
        assert (len(samples), rate) == (8000, 16000)


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.mp3", "a.flac"])
def test_truncated_audio_is_refused(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, noise(2.0), 16000)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    message = rf"^truncated: .*{name}.*: the header promises 2\.\d\d s, [01]\.\d\d s are there$"
    for entry in (str(tmp_path / name), f"cat {tmp_path / name} |"):
        with pytest.raises(AudioError, match=message):
            read_audio(entry)


def test_a_header_that_counts_itself_is_not_truncation(tmp_path: Path) -> None:
    made = io.BytesIO()
    soundfile.write(made, noise(0.5), 16000, format="WAV")
    raw = bytearray(made.getvalue())
    raw[40:44] = struct.pack("<I", len(raw))
    (tmp_path / "a.wav").write_bytes(raw)
    assert len(read_audio(str(tmp_path / "a.wav"))[0]) == 8000


def test_a_pickle_in_an_ark_is_not_loaded(tmp_path: Path) -> None:
    kaldiio.save_ark(str(tmp_path / "a.ark"), {"u": {"x": 1}}, scp=str(tmp_path / "a.scp"), write_function="pickle")
    with pytest.raises(AudioError, match="cannot be decoded: .*a.ark:2: no audio at this offset"):
        read_audio(read_table(tmp_path / "a.scp")["u"])


def test_a_file_without_a_header_cannot_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(100))
    with pytest.raises(AudioError, match="cannot be decoded: .*a.raw: "):
        read_audio(str(tmp_path / "a.raw"))


def test_resampling_does_not_round_and_only_16_bit_output_is_clipped() -> None:
    speech = (noise(0.5) * 4).astype(np.float32)
    assert resample(speech, 16000) is speech
    assert np.abs(resample(speech, 8000)).max() > 1 and resample(speech / 2**20, 8000).any()
    assert to_int16(speech).min() == -32768 and to_int16(speech).max() == 32767


def test_16_bit_samples_survive_the_conversion_to_float_and_back() -> None:
    samples = np.arange(-32768, 32768, dtype=np.int16)
    np.testing.assert_array_equal(to_int16(samples.astype(np.float32) / 32768), samples)

"""Audio files of any format are read whole, or refused with the reason."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from audio_files import FFMPEG, RATES, SOUNDFILE, encode, loudness, speech_like

from espnet_lole.data.reading import duration, read_blocks, read_file, resample_blocks
from espnet_lole.data.samples import AudioError

KINDS = [*SOUNDFILE, *FFMPEG]


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two seconds at 16 kHz."""
    return speech_like(2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_whole(kind, tmp_path):
    rate = RATES.get(kind, 16000)
    speech = speech_like(2.0, rate)
    file = tmp_path / "misnamed.txt"
    file.write_bytes(encode(kind, speech, rate))
    samples, read_rate = read_file(str(file))
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) / read_rate == pytest.approx(2.0, abs=0.15)
    assert loudness(samples, read_rate).mean() == pytest.approx(loudness(speech, rate).mean(), rel=0.2)
    assert duration(str(file)) is None or duration(str(file)) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("kind", ["wav", "wav24", "float", "aiff", "flac", "alac", "mkv", "ffmpeg flac"])
def test_lossless_formats_are_read_without_loss(kind, speech):
    samples, _ = read_file(io.BytesIO(encode(kind, speech, 16000, channels=2)))
    np.testing.assert_allclose(samples, speech, atol={"wav24": 2e-7, "float": 1e-7}.get(kind, 4e-5))


def test_a_killed_recorder_whose_header_has_no_size_is_read(speech):
    whole = encode("wav", speech, 16000)
    for riff in (0, 36, 0xFFFFFFFF):
        raw = bytearray(whole)
        raw[4:8], raw[40:44] = struct.pack("<I", riff), bytes(4)
        assert len(read_file(io.BytesIO(raw))[0]) == len(speech)


def test_a_header_without_audio_is_refused(speech):
    for raw in (encode("wav", speech[:0], 16000), encode("wav", speech, 16000)[:44], encode("flac", speech[:0], 16000)):
        with pytest.raises(AudioError, match=r"^(no samples|truncated|cannot be decoded|empty file): standard input"):
            read_file(io.BytesIO(raw))


def test_a_size_that_was_not_brought_up_to_date_is_refused(speech):
    raw = bytearray(encode("wav", speech, 16000))
    raw[4:8], raw[40:44] = struct.pack("<I", 36 + 32000), struct.pack("<I", 32000)
    with pytest.raises(AudioError, match=r"^chained: standard input: 32000 bytes follow the 1.00 s of its header; "):
        read_file(io.BytesIO(raw))


def test_flac_of_unknown_length_is_read(speech):
    raw = bytearray(encode("flac", speech, 16000))
    raw[21] &= 0xF0
    raw[22:26] = bytes(4)
    samples, _ = read_file(io.BytesIO(raw))
    np.testing.assert_allclose(samples, speech, atol=4e-5)


@pytest.mark.parametrize("kind", ["mp3", "ffmpeg mp3", "ogg", "opus", "ffmpeg opus", "aac", "ac3"])
def test_chained_streams_are_read_to_the_end(kind):
    rate = RATES.get(kind, 16000)
    raw = encode(kind, speech_like(2.0, rate), rate) + encode(kind, speech_like(1.5, rate, seed=1), rate)
    samples, read_rate = read_file(io.BytesIO(raw))
    assert len(samples) / read_rate == pytest.approx(3.5, abs=0.3)


@pytest.mark.parametrize("kind", sorted({"wav", "aiff", "flac", "faststart", "webm", "mka", "amr", "wma"} & {*KINDS}))
def test_joined_files_are_refused(kind):
    rate = RATES.get(kind, 16000)
    raw = encode(kind, speech_like(1.0, rate), rate) + encode(kind, speech_like(1.5, rate, seed=1), rate)
    with pytest.raises(AudioError, match=r"^(chained|cannot be decoded|truncated): standard input: "):
        read_file(io.BytesIO(raw))


@pytest.mark.parametrize("kind", ["ogg", "opus", "m4a", "faststart", "webm", "mka", "wma", "avi", "ffmpeg mp3"])
def test_truncated_compressed_files_are_refused(kind):
    rate = RATES.get(kind, 16000)
    whole = encode(kind, speech_like(2.0, rate), rate)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(AudioError, match=r"^(truncated|damaged|cannot be decoded): standard input: "):
            read_file(io.BytesIO(whole[: int(share * len(whole))]))


def test_a_lost_page_of_ogg_is_noticed(speech):
    raw = encode("opus", speech_like(4.0, 48000), 48000)
    pages = [i for i in range(len(raw)) if raw[i : i + 4] == b"OggS"]
    with pytest.raises(AudioError, match="damaged: standard input: an Ogg page is missing"):
        read_file(io.BytesIO(raw[: pages[3]] + raw[pages[4] :]))
    for page in (pages[3], pages[-1]):
        wrong = bytearray(raw)
        wrong[page + 100] ^= 1
        with pytest.raises(AudioError, match="(damaged|truncated): standard input: "):
            read_file(io.BytesIO(wrong))


def test_floating_point_files_at_16_bit_scale_are_scaled_and_nan_is_refused(tmp_path, speech):
    file = str(tmp_path / "a.wav")
    soundfile.write(file, np.rint(32768 * speech), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_file(file)[0], speech, atol=2e-5)
    speech = speech.copy()
    speech[20_000] = np.nan
    soundfile.write(file, speech, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=f"not finite: {file}: NaN or infinity at 1.25 s"):
        read_file(file)


def test_titles_in_any_encoding_are_no_obstacle():
    raw = encode("avi", speech_like(1.0, 44100), 44100)
    assert raw.count(b"Lavf") == 1
    assert len(read_file(io.BytesIO(raw.replace(b"Lavf", b"\xe4\xf6\xfc\xdf")))[0]) > 44100


def test_playlists_and_folders_are_not_followed(tmp_path, speech):
    (tmp_path / "a.wav").write_bytes(encode("wav", speech, 16000))
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:2,\n{tmp_path}/a.wav\n#EXT-X-ENDLIST\n")
    for name in ("list.m3u8", ""):
        with pytest.raises(AudioError, match=f"cannot be decoded: {tmp_path}"):
            read_file(str(tmp_path / name))


def test_a_video_gives_its_sound_and_one_without_sound_is_refused(tmp_path, speech):
    for sound in (True, False):
        file = str(tmp_path / f"{sound}.mp4")
        with av.open(file, "w") as output:
            picture = output.add_stream("mpeg4", rate=10, width=64, height=48)
            track = output.add_stream("aac", rate=16000, layout="mono") if sound else None
            for i in range(20):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * i, dtype=np.uint8))
                output.mux(picture.encode(frame))
            output.mux(picture.encode(None))
            if track is not None:
                frame = av.AudioFrame.from_ndarray(speech[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, 0
                output.mux(track.encode(frame))
                output.mux(track.encode(None))
        if sound:
            assert len(read_file(file)[0]) == pytest.approx(32000, abs=2048)
        else:
            with pytest.raises(AudioError, match=f"no audio: {file}: the file has no audio stream"):
                read_file(file)


def test_streams_without_seeking_and_text_files(tmp_path, speech):
    raw = encode("m4a", speech, 16000)

    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    assert len(read_file(Pipe(raw))[0]) == pytest.approx(32000, abs=2048)
    (tmp_path / "a").write_bytes(raw)
    with open(tmp_path / "a", encoding="latin1") as text, pytest.raises(AudioError, match="open it with mode 'rb'"):
        read_file(text)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_blocks_are_resampled_as_the_whole_is(tmp_path, rate, monkeypatch):
    speech = speech_like(20.0, rate)
    Path(tmp_path / "a.wav").write_bytes(encode("wav", speech, rate, channels=2))
    monkeypatch.setattr("espnet_lole.data.reading.BLOCK", 100_000)
    blocks = list(read_blocks(str(tmp_path / "a.wav")))
    assert len(blocks) > 1 and {read_rate for _, read_rate in blocks} == {rate}
    whole = np.concatenate([samples for samples, _ in blocks])
    streamed = np.concatenate(list(resample_blocks(blocks)))
    np.testing.assert_allclose(streamed, soxr.resample(whole, rate, 16000), atol=1e-5)

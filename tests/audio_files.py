"""Audio files that tests make: encoded by libsndfile or FFmpeg, and damaged."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import NamedTemporaryFile

import av
import numpy as np
import soundfile


def is_encoder(codec: str) -> bool:
    """Check whether FFmpeg can encode this."""
    try:
        return av.Codec(codec, "w").is_encoder
    except av.codec.codec.UnknownCodecError:
        return False


SOUNDFILE = {
    "wav": ("WAV", "PCM_16"), "wav24": ("WAV", "PCM_24"), "float": ("WAV", "FLOAT"), "aiff": ("AIFF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
}  # fmt: skip
"""Name -> format and subtype of libsndfile."""
FFMPEG = {
    "m4a": ("mp4", "aac", {}), "faststart": ("mp4", "aac", {"movflags": "faststart"}), "alac": ("mp4", "alac", {}),
    "fragmented": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}), "mkv": ("matroska", "pcm_s16le", {}),
    "webm": ("webm", "libopus", {}), "live webm": ("webm", "libopus", {"live": "1"}), "mka": ("matroska", "aac", {}),
    "aac": ("adts", "aac", {}), "amr": ("amr", "libopencore_amrnb", {}), "3gp": ("3gp", "libopencore_amrnb", {}),
    "ac3": ("ac3", "ac3", {}), "mp2": ("mp2", "mp2", {}), "wma": ("asf", "wmav2", {}), "avi": ("avi", "libmp3lame", {}),
    "flv": ("flv", "aac", {}), "mpegts": ("mpegts", "aac", {}), "ffmpeg mp3": ("mp3", "libmp3lame", {}),
    "ffmpeg flac": ("flac", "flac", {}), "ffmpeg opus": ("ogg", "libopus", {}),
}  # fmt: skip
"""Name -> container, codec and options of FFmpeg; the wheels of some versions of PyAV have no encoder for AMR."""
FFMPEG = {kind: made for kind, made in FFMPEG.items() if is_encoder(made[1])}
RATES = {"webm": 48000, "live webm": 48000, "amr": 8000, "3gp": 8000, "ac3": 44100, "wma": 44100, "avi": 44100,
         "flv": 44100, "opus": 48000, "ffmpeg opus": 48000}  # fmt: skip
"""Rate of the formats that do not have all rates."""


def speech_like(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Return harmonics whose loudness changes every 0.1 s, float32 (T,)."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    steps = random.choice([0.05, 0.2, 0.5], 1 + int(seconds / 0.1))
    loudness = np.interp(time, 0.1 * np.arange(len(steps)), steps)
    return (loudness * sum(np.sin(2 * np.pi * hz * time) / 3 for hz in (220, 440, 880))).astype(np.float32)


def encode(kind: str, samples: np.ndarray, rate: int, channels: int = 1) -> bytes:
    """Encode samples of shape (T,), the same in all channels, in a format of SOUNDFILE or FFMPEG."""
    made = io.BytesIO()
    if kind in SOUNDFILE:
        container, subtype = SOUNDFILE[kind]
        soundfile.write(made, np.stack([samples] * channels, axis=1), rate, format=container, subtype=subtype)
        return made.getvalue()
    container, codec, options = FFMPEG[kind]
    layout = "mono" if channels == 1 else "stereo"
    with NamedTemporaryFile() as file, av.open(file.name, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if codec == "wmav2":
            stream.bit_rate = 64000
        source = av.AudioFrame.from_ndarray(np.tile(samples, (channels, 1)), format="fltp", layout=layout)
        source.sample_rate, source.pts = rate, 0
        resampler = av.AudioResampler(format=stream.codec_context.codec.audio_formats[0], layout=layout, rate=rate)
        for frame in [*resampler.resample(source), *resampler.resample(None), None]:
            output.mux(stream.encode(frame))
        output.close()
        return Path(file.name).read_bytes()


def loudness(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return the loudness in windows of 50 ms, (W,)."""
    windows = len(samples) // (rate // 20)
    return np.sqrt((samples[: windows * (rate // 20)].reshape(windows, rate // 20) ** 2).mean(axis=1))

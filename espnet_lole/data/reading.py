"""The one reader of audio files: decoded in blocks, checked to be whole, mono, and resampled as a stream."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from espnet_lole.data import ffmpeg
from espnet_lole.data.containers import TRUNCATED_SECONDS, check_length, num_bytes, ogg_streams, riff_end
from espnet_lole.data.samples import MAX_PEAK, AudioError, check_rate, float_scale

SAMPLE_RATE = 16000
BLOCK = 1 << 20
"""Samples of a block, at the rate of the file."""
UNCOMPRESSED = (b"FORM", b".snd", b"caff", b"riff", b"NIST")
"""Beginnings of files that libsndfile reads, as it does WAV; FFmpeg reads others."""
# Two sizes in libsndfile's log: the header's, and the one that fits the file
HEADER_SIZE = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
STREAM_SIZE = 0x7FFF0000  # programs that write to a pipe put this size or a larger one into the header


def read_file(file: str | BinaryIO) -> tuple[np.ndarray, int]:
    """Read an audio file as a whole.

    Returns:
        Samples, averaged over the channels, float32 in [-1, 1] of shape (T,), and their rate.

    Raises:
        AudioError: see `read_blocks`.
    """
    blocks = list(read_blocks(file))
    return np.concatenate([samples for samples, _ in blocks]), blocks[0][1]


def read_blocks(file: str | BinaryIO) -> Iterator[tuple[np.ndarray, int]]:
    """Read an audio file, or the sound of a video, in blocks.

    Args:
        file: a path, or an opened file, which is read from its beginning.

    Yields:
        Samples, averaged over the channels, float32 in [-1, 1] of shape (T,), and their rate, which does not change.

    Raises:
        AudioError: the file does not exist, cannot be decoded, has no samples or such as are not finite, or a part of
            it is missing or would be left out; the last is found at the end.
    """
    with open_file(file) as (opened, name):
        count, first = 0, None
        for samples, rate in _collect(_decode(opened, name)):
            first = first or check_rate(rate, name)
            peak = np.abs(samples).max()
            if not np.isfinite(peak):
                seconds = (count + np.isfinite(samples).argmin()) / rate
                raise AudioError(f"not finite: {name}: NaN or infinity at {seconds:.2f} s")
            if rate != first or peak > MAX_PEAK:
                what = f"a rate of {rate} instead of {first} Hz" if rate != first else f"a peak of {peak:g}"
                raise AudioError(f"damaged: {name}: {what} after {count / rate:.1f} s")
            count += len(samples)
            yield samples, first
        if not count:
            raise AudioError(f"no samples: {name}: the audio is empty")


def resample_blocks(blocks: Iterable[tuple[np.ndarray, float]]) -> Iterator[np.ndarray]:
    """Resample blocks of one rate to 16 kHz, float32 (T,)."""
    stream = None
    for samples, rate in blocks:
        if rate == SAMPLE_RATE:
            yield samples
            continue
        stream = stream or soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        yield stream.resample_chunk(samples)
    if stream is not None:
        yield stream.resample_chunk(np.empty(0, dtype=np.float32), last=True)


def duration(file: str | BinaryIO) -> float | None:
    """Return the seconds of a file by its header, without reading it; None if there is no telling."""
    try:
        with open_file(file) as (opened, _):
            if not opened.read(4).startswith(UNCOMPRESSED):
                return ffmpeg.duration(opened)
            opened.seek(0)
            return soundfile.info(opened).duration
    except (AudioError, soundfile.SoundFileError, OSError):
        return None


@contextmanager
def open_file(file: str | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """Open a file at its beginning, seekable, and name it.

    Raises:
        AudioError: it is not there, is empty, or cannot be read.
    """
    if isinstance(file, str) and os.path.isdir(file):
        raise AudioError(f"cannot be decoded: {file}: it is a folder; name its files")
    if isinstance(file, str) and not os.path.isfile(file):
        raise AudioError(f"missing file: {file}")
    name = file if isinstance(file, str) else str(getattr(file, "name", "standard input"))
    try:
        opened = open(file, "rb") if isinstance(file, str) else file
        if isinstance(opened, io.TextIOBase):
            raise AudioError(f"cannot be decoded: {name}: opened as text; open it with mode 'rb'")
        try:
            seekable = opened if opened.seekable() else io.BytesIO(opened.read())
            if not num_bytes(seekable):
                raise AudioError(f"empty file: {name}")
            yield _Nameless(seekable), name
        finally:
            if isinstance(file, str):
                opened.close()
    except OSError as error:
        raise AudioError(f"cannot be decoded: {name}: {error.strerror or error}") from error


class _Nameless:
    """A file for decoders: they do not see its name, and a place that does not exist is -1 and no exception."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.read, self.tell = file, file.read, file.tell
        self.seek(0)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek; return the new position, or -1."""
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


def _collect(parts: Iterable[tuple[np.ndarray, int]]) -> Iterator[tuple[np.ndarray, int]]:
    """Join the frames of a codec to blocks of one rate."""
    held: list[np.ndarray] = []
    count, held_rate = 0, None
    for samples, rate in parts:
        if held and (rate != held_rate or count >= BLOCK):
            yield np.concatenate(held), held_rate
            held, count = [], 0
        if len(samples):
            held.append(samples)
            count, held_rate = count + len(samples), rate
    if held:
        yield np.concatenate(held), held_rate


def _decode(file: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """Decode a file with the library for its format: float32 (T,) and rate."""
    start = file.read(12)
    wav = start.startswith((b"RIFF", b"RIFX", b"RF64")) and start.endswith(b"WAVE")
    end = riff_end(file, name) if start.startswith((b"RIFF", b"RIFX", b"FORM")) else None
    seconds = ogg_streams(file, name) if start.startswith(b"OggS") else []
    file.seek(0)
    sound = None
    if wav or len(seconds) == 1 or start.startswith(UNCOMPRESSED):
        try:
            sound = soundfile.SoundFile(file)
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            if not start.startswith((b"OggS", b"caff")):  # these may have codecs that FFmpeg alone knows
                raise AudioError(f"cannot be decoded: {name}: {getattr(error, 'error_string', error)}") from error
    if sound is None or (not sound.frames and end):  # with audio after a size of 0, as a killed recorder leaves it
        yield from ffmpeg.decode(file, name)
        return
    try:
        with sound:
            promised = seconds[0] if seconds else sound.frames / sound.samplerate
            yield from _decode_sndfile(sound, file, end, promised, name)
    except soundfile.SoundFileError as error:
        raise AudioError(f"cannot be decoded: {name}: {getattr(error, 'error_string', error)}") from error


def _decode_sndfile(
    sound: soundfile.SoundFile, file: BinaryIO, end: int | None, promised: float, name: str
) -> Iterator[tuple[np.ndarray, int]]:
    """Decode a file with libsndfile; the chunks of its container end at a byte, or fill it (None)."""
    rate = sound.samplerate
    unread = num_bytes(file) - end if end else 0
    if end and unread / end * promised > TRUNCATED_SECONDS:
        raise AudioError(
            f"chained: {name}: {unread} bytes follow the {promised:.2f} s of its header; split joined files, "
            "or correct the header"
        )
    sizes = HEADER_SIZE.search(sound.extra_info)
    if sizes and int(sizes[1]) < STREAM_SIZE and sound.frames:
        promised *= int(sizes[1]) / int(sizes[2])  # libsndfile counts the frames that exist
    scale, count = np.float32(_float_scale(sound, name)), 0
    while len(samples := sound.read(BLOCK // sound.channels, dtype="float32", always_2d=True)):
        yield samples.mean(axis=1, dtype=np.float32) / scale, rate
        count += len(samples)
    check_length(promised, count / rate, name)


def _float_scale(sound: soundfile.SoundFile, name: str) -> float:
    """Find the value of full scale of a file: it is 1 but in floating-point files with other values."""
    peak, integers = 0.0, True
    if sound.subtype in ("FLOAT", "DOUBLE"):
        for samples in sound.blocks(BLOCK // sound.channels, dtype="float32"):
            peak = max(peak, float(np.abs(samples).max()))
            integers = integers and bool((samples == np.rint(samples)).all())
        sound.seek(0)
    return float_scale(peak, integers, name) if np.isfinite(peak) else 1.0

"""Reading any audio a Kaldi directory may name, as 16 kHz mono, and writing that."""

import io
import os
import re
import subprocess
from pathlib import Path
from typing import BinaryIO

import kaldiio
import numpy as np
import soundfile
import soxr

from espnet_lole.data.kaldi import Segment

SAMPLE_RATE = 16000
WHISPER_SECONDS = (0.025, 30.0)  # the shortest and the longest audio Whisper takes
ARK_AUDIO = (b"RIFF", b"AUDIO", b"fLaC")
LOST_SECONDS = 0.1  # less audio than a header promises, by more than this, is a broken file
OVERSHOOT_SECONDS = 0.5  # a segment may end behind its recording by this
HEADER_SIZE = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)  # libsndfile's log
STREAM_SIZE = 0x7FFF0000  # sizes from here on are what a program writes that does not know it yet


class AudioError(Exception):
    """An utterance's audio cannot be used; the message is the reason, `kind: detail`."""


def split_ark(entry: str) -> tuple[str, int | None]:
    """Splits a wav.scp entry that is an ark offset.

    Args:
        entry: what wav.scp says, not a command.

    Returns:
        The file and the offset in it, None for a plain audio file.
    """
    path, _, offset = entry.rpartition(":")
    return (path, int(offset)) if path and offset.isdecimal() else (entry, None)


def read_audio(entry: str) -> tuple[np.ndarray, int]:
    """Reads a wav.scp entry: an audio file, an ark offset, or a command ending in `|`.

    Args:
        entry: what wav.scp says.

    Returns:
        The samples, mono float32 in [-1, 1] of shape (T,), and their rate.

    Raises:
        AudioError: there is no such file, the command failed, or the audio cannot be decoded or ends too early.
    """
    try:
        if entry.endswith("|"):
            samples, rate = _decode(io.BytesIO(_run(entry[:-1])), entry)
        elif split_ark(entry)[1] is not None:
            samples, rate = _read_ark(*split_ark(entry))
        else:
            return read_file(entry)
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
        raise AudioError(f"cannot be decoded: {entry}: {getattr(error, 'error_string', error)}") from error
    return samples.mean(axis=1, dtype=np.float32), rate  # (T, channels) -> (T,)


def read_file(file: str | BinaryIO) -> tuple[np.ndarray, int]:
    """Reads an audio file, by its path or opened; samples and rate as `read_audio`, whose errors it raises."""
    name = file if isinstance(file, str) else getattr(file, "name", "standard input")
    if isinstance(file, str) and not os.path.isfile(file):
        raise AudioError(f"missing file: {file}")
    if isinstance(file, str) and not os.path.getsize(file):
        raise AudioError(f"empty file: {file}")
    try:
        samples, rate = _decode(file, name)
    except (soundfile.SoundFileError, OSError, MemoryError) as error:
        raise AudioError(f"cannot be decoded: {name}: {getattr(error, 'error_string', error)}") from error
    return samples.mean(axis=1, dtype=np.float32), rate  # (T, channels) -> (T,)


def _decode(file: str | BinaryIO, name: str) -> tuple[np.ndarray, int]:
    """Reads an audio file, `name` in messages; returns float32 samples (T, channels) and their rate."""
    with soundfile.SoundFile(file) as sound:
        promised, rate = float(sound.frames), sound.samplerate
        samples = sound.read(dtype="float32", always_2d=True)
        sizes = HEADER_SIZE.search(sound.extra_info)
    if sizes and int(sizes[1]) < STREAM_SIZE and len(samples):
        promised *= int(sizes[1]) / int(sizes[2])  # libsndfile goes by what is there
    if promised - len(samples) > LOST_SECONDS * rate:
        there = len(samples) / rate
        raise AudioError(f"truncated: {name}: the header promises {promised / rate:.2f} s, {there:.2f} s are there")
    return samples, rate


def _run(command: str) -> bytes:
    """Returns what a shell command writes to its standard output."""
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise AudioError(f"command failed: exit status {done.returncode} of '{command.strip()}': {said[-1]}")
    return done.stdout


def _read_ark(path: str, offset: int | None) -> tuple[np.ndarray, int]:
    """Reads audio at an offset of an ark; returns float32 samples (T, channels) and their rate."""
    if not os.path.isfile(path):
        raise AudioError(f"missing file: {path}")
    with open(path, "rb") as ark:
        ark.seek(offset or 0)
        magic = ark.read(5)
        if not magic.startswith(ARK_AUDIO):  # kaldiio would unpickle what it finds, or read features
            raise AudioError(f"cannot be decoded: no audio at offset {offset} of {path}")
    try:
        rate, samples = kaldiio.load_mat(f"{path}:{offset}")
    except (AssertionError, EOFError, RuntimeError) as error:
        raise AudioError(f"cannot be decoded: {path}:{offset}: {error}") from error
    scale = -float(np.iinfo(samples.dtype).min) if np.issubdtype(samples.dtype, np.signedinteger) else 1.0
    return (samples.astype(np.float32) / scale).reshape(len(samples), -1), rate


def cut(samples: np.ndarray, rate: int, segment: Segment) -> np.ndarray:
    """Cuts a segment out of a recording; its end may lie a little behind the recording's, as in Kaldi.

    Args:
        samples: the recording, (T,).
        rate: its sample rate.
        segment: what to cut; its end -1 means the recording's.

    Returns:
        The segment's samples, none if it is empty.

    Raises:
        AudioError: the segment ends behind the recording.
    """
    if segment.end > len(samples) / rate + OVERSHOOT_SECONDS:
        raise AudioError(
            f"segment beyond its recording: ends at {segment.end:.2f} s, the recording at {len(samples) / rate:.2f} s"
        )
    start = max(0, round(segment.start * rate))
    end = len(samples) if segment.end == -1 else max(0, round(segment.end * rate))
    return samples[start:end]


def to_16k(samples: np.ndarray, rate: float) -> np.ndarray:
    """Resamples to 16 kHz and 16 bit.

    Args:
        samples: float32 (T,).
        rate: their rate; a larger one plays them faster, and higher, as `sox speed` does.

    Returns:
        int16 (T * 16000 / rate,).

    Raises:
        AudioError: there are no samples, or some are not finite.
    """
    if len(samples) and not np.isfinite(samples).all():
        raise AudioError("not finite: the samples hold NaN or infinity")
    if rate != SAMPLE_RATE and len(samples):
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    if not len(samples):
        raise AudioError("no samples: the audio or the segment is empty")
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def write_audio(path: Path, samples: np.ndarray) -> None:
    """Writes 16 kHz and 16 bit, in the format of the file's suffix.

    Args:
        path: to write to.
        samples: int16, or float in [-1, 1], (T,).

    Raises:
        OSError: it cannot be written.
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, SAMPLE_RATE, subtype="PCM_16", format=path.suffix[1:])
    path.write_bytes(encoded.getvalue())  # libsndfile itself would lose the system's error

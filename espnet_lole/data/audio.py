"""Audio input and output: read whatever a Kaldi directory may name, resample it to 16 kHz, write 16-bit files."""

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

from espnet_lole.data.kaldi import KaldiSegment

SAMPLE_RATE = 16000
WHISPER_SECONDS = (0.025, 30.0)  # shortest and longest audio that Whisper accepts
ARK_AUDIO = (b"RIFF", b"AUDIO", b"fLaC")
TRUNCATED_SECONDS = 0.1  # a file that lacks more than this of what its header promises is truncated
OVERSHOOT_SECONDS = 0.5  # a segment may end this much after its recording
# Two sizes in libsndfile's log: the header's, and the one that fits the file
HEADER_SIZE = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
STREAM_SIZE = 0x7FFF0000  # programs that write to a pipe put this size or a larger one into the header


class AudioError(Exception):
    """The audio of an utterance cannot be used; the message is the reason, `kind: detail`."""


def split_ark(entry: str) -> tuple[str, int | None]:
    """Split an entry of wav.scp that is not a command into its file and its ark offset (None for an audio file)."""
    path, _, offset = entry.rpartition(":")
    return (path, int(offset)) if path and offset.isdecimal() else (entry, None)


def read_audio(entry: str) -> tuple[np.ndarray, int]:
    """Read an entry of wav.scp: an audio file, an ark offset, or a command ending in `|`.

    Returns:
        Samples and sample rate, as `read_file` does.

    Raises:
        AudioError: the file does not exist, the command failed, or the audio is damaged.
    """
    if entry.endswith("|"):
        output = io.BytesIO(_run(entry[:-1]))
        output.name = entry
        return read_file(output)
    path, offset = split_ark(entry)
    return read_file(entry) if offset is None else _read_ark(path, offset)


def read_file(file: str | BinaryIO) -> tuple[np.ndarray, int]:
    """Read an audio file, given by its path or opened.

    Returns:
        Samples, averaged over the channels, float32 in [-1, 1] of shape (T,), and their rate.

    Raises:
        AudioError: the file does not exist, cannot be decoded, or is shorter than its header promises.
    """
    name = file if isinstance(file, str) else getattr(file, "name", "standard input")
    if isinstance(file, str) and not os.path.isfile(file):
        raise AudioError(f"missing file: {file}")
    if isinstance(file, str) and not os.path.getsize(file):
        raise AudioError(f"empty file: {file}")
    try:
        with soundfile.SoundFile(file) as sound:
            promised, rate = float(sound.frames), sound.samplerate
            samples = sound.read(dtype="float32", always_2d=True)
            sizes = HEADER_SIZE.search(sound.extra_info)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, MemoryError) as error:
        raise AudioError(f"cannot be decoded: {name}: {getattr(error, 'error_string', error)}") from error
    if sizes and int(sizes[1]) < STREAM_SIZE and len(samples):
        promised *= int(sizes[1]) / int(sizes[2])  # libsndfile counts the frames that exist
    if promised - len(samples) > TRUNCATED_SECONDS * rate:
        seconds = len(samples) / rate
        raise AudioError(f"truncated: {name}: the header promises {promised / rate:.2f} s, {seconds:.2f} s are there")
    return _mono(samples), rate


def _mono(samples: np.ndarray) -> np.ndarray:
    """Average the channels: float32 (T, channels) -> (T,)."""
    return samples.mean(axis=1, dtype=np.float32)


def _run(command: str) -> bytes:
    """Return the standard output of a shell command."""
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise AudioError(f"command failed: exit status {done.returncode} of '{command.strip()}': {lines[-1]}")
    return done.stdout


def _read_ark(path: str, offset: int) -> tuple[np.ndarray, int]:
    """Read audio at an offset of an ark; samples and rate as in `read_file`."""
    if not os.path.isfile(path):
        raise AudioError(f"missing file: {path}")
    try:
        with open(path, "rb") as ark:
            ark.seek(offset)
            if not ark.read(5).startswith(ARK_AUDIO):  # kaldiio would unpickle other content, or read features
                raise ValueError("no audio at this offset")
        rate, samples = kaldiio.load_mat(f"{path}:{offset}")
    except (AssertionError, EOFError, RuntimeError, OSError, ValueError, MemoryError) as error:
        raise AudioError(f"cannot be decoded: {path}:{offset}: {getattr(error, 'error_string', error)}") from error
    scale = -float(np.iinfo(samples.dtype).min) if np.issubdtype(samples.dtype, np.signedinteger) else 1.0
    return _mono((samples.astype(np.float32) / scale).reshape(len(samples), -1)), rate


def cut(samples: np.ndarray, rate: int, segment: KaldiSegment) -> np.ndarray:
    """Cut a segment out of a recording; as in Kaldi, it may end a little after the recording.

    Args:
        samples: the recording, (T,).
        rate: its sample rate.
        segment: the part to cut out.

    Returns:
        The samples of the segment, (T',); none if it is empty.

    Raises:
        AudioError: the segment ends more than OVERSHOOT_SECONDS after the recording.
    """
    seconds = len(samples) / rate
    if segment.end > seconds + OVERSHOOT_SECONDS:
        raise AudioError(f"segment beyond its recording: ends at {segment.end:.2f} s, the recording at {seconds:.2f} s")
    start = max(0, round(segment.start * rate))
    end = len(samples) if segment.end == -1 else max(0, round(segment.end * rate))
    return samples[start:end]


def resample(samples: np.ndarray, rate: float) -> np.ndarray:
    """Resample to 16 kHz.

    Args:
        samples: float32 (T,).
        rate: their sample rate; a rate above the true one speeds the audio up and raises its pitch, like `sox speed`.

    Returns:
        float32 (T * 16000 / rate,).

    Raises:
        AudioError: there are no samples, or some are not finite.
    """
    if not np.isfinite(samples).all():
        raise AudioError("not finite: the samples contain NaN or infinity")
    if rate != SAMPLE_RATE and len(samples):
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    if not len(samples):
        raise AudioError("no samples: the audio or the segment is empty")
    return samples


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Round float samples in [-1, 1) to 16 bit and clip larger ones, (T,) -> (T,)."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def write_audio(path: Path, samples: np.ndarray) -> None:
    """Write 16 kHz, 16-bit audio in the format of the file's suffix.

    Args:
        path: the file.
        samples: int16, or float in [-1, 1], (T,).

    Raises:
        OSError: the file cannot be written.
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, SAMPLE_RATE, subtype="PCM_16", format=path.suffix[1:])
    path.write_bytes(encoded.getvalue())  # libsndfile itself would hide the system's error

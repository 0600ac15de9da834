"""Audio input and output: read whatever a Kaldi directory may name, resample it to 16 kHz, write 16-bit files."""

import io
import os
import subprocess
from pathlib import Path

import kaldiio
import numpy as np
import soundfile
import soxr

from espnet_lole.data.kaldi import KaldiSegment
from espnet_lole.data.reading import SAMPLE_RATE, read_file
from espnet_lole.data.samples import AudioError, to_mono

WHISPER_SECONDS = (0.025, 30.0)  # shortest and longest audio that Whisper accepts
ARK_AUDIO = (b"RIFF", b"AUDIO", b"fLaC")
OVERSHOOT_SECONDS = 0.5  # a segment may end this much after its recording


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
    return to_mono(samples, f"{path}:{offset}"), rate


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
        AudioError: there are no samples.
    """
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

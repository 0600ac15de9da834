"""Reading any audio a Kaldi directory may name, and formatting it as 16 kHz mono files."""

import io
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import kaldiio
import numpy as np
import soundfile
import soxr

from espnet_lole.data.kaldi import KaldiDir, Segment, atomic_dir, write_table

SAMPLE_RATE = 16000
FORMATS = ("flac", "wav")
ARK_AUDIO = (b"RIFF", b"AUDIO", b"fLaC")
PROGRESS_SECONDS = 5.0


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
        AudioError: there is no such file, the command failed, or the audio cannot be decoded.
    """
    try:
        if entry.endswith("|"):
            samples, rate = soundfile.read(io.BytesIO(_run(entry[:-1])), dtype="float32", always_2d=True)
        elif split_ark(entry)[1] is not None:
            samples, rate = _read_ark(*split_ark(entry))
        else:
            if not os.path.isfile(entry):
                raise AudioError(f"missing file: {entry}")
            samples, rate = soundfile.read(entry, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
        raise AudioError(f"cannot be decoded: {entry}: {error}") from error
    return samples.mean(axis=1, dtype=np.float32), rate  # (T, channels) -> (T,)


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
    """Cuts a segment out of a recording, as far as the recording goes.

    Args:
        samples: the recording, (T,).
        rate: its sample rate.
        segment: what to cut; its end -1 means the recording's.

    Returns:
        The segment's samples, none if it lies outside.
    """
    start = max(0, round(segment.start * rate))
    end = len(samples) if segment.end == -1 else max(0, round(segment.end * rate))
    return samples[start:end]


def to_16k(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resamples to 16 kHz and 16 bit.

    Args:
        samples: float32 (T,).
        rate: their rate.

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
        raise AudioError("no samples: the audio is empty or the segment outside of it")
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def audio_name(utt: str, audio_format: str) -> str:
    """Returns the file name of an utterance's audio; a slash in the id does not make a folder."""
    return f"{utt.replace('/', '%2F')}.{audio_format}"


def format_dir(src: str | Path, dst: str | Path, audio_format: str = "flac", nj: int = 4) -> tuple[int, Counter[str]]:
    """Writes a Kaldi directory's audio as 16 kHz mono 16 bit files, in the layout of ESPnet's dump/raw.

    Args:
        src: the Kaldi directory.
        dst: the directory to write, whole or not at all.
        audio_format: "flac" or "wav".
        nj: how many recordings to read at once.

    Returns:
        The number of utterances written, and of those skipped per kind of reason.

    Raises:
        ValueError: an option is out of range, `src` is `dst`, or no utterance could be read.
    """
    if audio_format not in FORMATS:
        raise ValueError(f"expected an audio format of {', '.join(FORMATS)}, got '{audio_format}'; choose one of these")
    if nj < 1:
        raise ValueError(f"expected nj of at least 1, got {nj}; give the number of threads")
    final = Path(os.path.realpath(dst))
    if final == Path(os.path.realpath(src)):
        raise ValueError(f"expected dst to differ from src, got {src} for both; choose another dst")
    kaldi = KaldiDir.read(src)
    with atomic_dir(final) as folder:
        (folder / "data").mkdir()
        lengths, skipped = _convert(kaldi, folder / "data", audio_format, nj)
        if not lengths:
            some = next(iter(skipped.items()), ("none", "wav.scp and text are empty"))
            raise ValueError(f"expected audio in {src}, none of {len(skipped)} utterances can be used (first: {' '.join(some)})")
        _write_dump(kaldi, folder, final, audio_format, lengths)
        write_table(folder / "skipped", skipped)
    kinds = Counter(reason.partition(":")[0] for reason in skipped.values())
    return len(lengths), kinds


def _write_dump(kaldi: KaldiDir, folder: Path, final: Path, audio_format: str, lengths: dict[str, int]) -> None:
    """Writes the tables of a formatted directory that will lie at `final`."""
    dump = KaldiDir(
        final,
        wav={utt: str(final / "data" / audio_name(utt, audio_format)) for utt in lengths},
        text={utt: kaldi.text[utt] for utt in lengths},
        utt2spk={utt: kaldi.speaker(utt) for utt in lengths},
        utt2lang={utt: kaldi.utt2lang[utt] for utt in lengths},
    )
    dump.write(folder)
    write_table(folder / "utt2num_samples", lengths)
    (folder / "feats_type").write_text("raw\n", encoding="utf-8")
    (folder / "audio_format").write_text(f"{audio_format}\n", encoding="utf-8")


def _convert(kaldi: KaldiDir, folder: Path, audio_format: str, nj: int) -> tuple[dict[str, int], dict[str, str]]:
    """Converts every usable utterance; returns utterance -> samples written, and utterance -> why it was skipped."""
    skipped: dict[str, str] = {}
    recordings: dict[str, list[str]] = defaultdict(list)
    for utt in kaldi.utterances():
        problem = kaldi.problem(utt) or (None if kaldi.utt2lang.get(utt) else "not in utt2lang")
        if problem is None:
            recordings[kaldi.recording(utt)].append(utt)
        else:
            skipped[utt] = problem

    def job(recording: str) -> dict[str, int | str]:
        return _convert_recording(kaldi, recordings[recording], folder, audio_format)

    lengths: dict[str, int] = {}
    for results in _parallel(job, list(recordings), nj):
        for utt, result in results.items():
            if isinstance(result, int):
                lengths[utt] = result
            else:
                skipped[utt] = result
    return lengths, skipped


def _convert_recording(kaldi: KaldiDir, utts: list[str], folder: Path, audio_format: str) -> dict[str, int | str]:
    """Converts one recording's utterances; returns utterance -> samples written, or why it was skipped."""
    try:
        samples, rate = read_audio(kaldi.wav[kaldi.recording(utts[0])])
    except AudioError as error:
        return dict.fromkeys(utts, " ".join(str(error).split()))
    results: dict[str, int | str] = {}
    for utt in utts:
        piece = samples if kaldi.segments is None else cut(samples, rate, kaldi.segments[utt])
        try:
            out = to_16k(piece, rate)
        except AudioError as error:
            results[utt] = str(error)
            continue
        path = folder / audio_name(utt, audio_format)
        try:
            soundfile.write(path, out, SAMPLE_RATE, subtype="PCM_16")
        except soundfile.SoundFileError as error:
            raise OSError(f"expected to write {path}, got: {error}; check the disk's free space and permissions") from error
        results[utt] = len(out)
    return results


def _parallel(job: Callable[[str], dict[str, int | str]], items: list[str], nj: int) -> Iterator[dict[str, int | str]]:
    """Yields the results of `job` over items as they come, with progress on stderr; an error cancels what has not begun."""
    began = shown = time.monotonic()
    pool = ThreadPoolExecutor(nj)
    try:
        futures: list[Future[dict[str, int | str]]] = [pool.submit(job, item) for item in items]
        for count, future in enumerate(as_completed(futures), start=1):
            yield future.result()
            now = time.monotonic()
            if now - shown >= PROGRESS_SECONDS:
                left = (now - began) / count * (len(items) - count)
                print(f"{count}/{len(items)} recordings, about {left:.0f} s left", file=sys.stderr, flush=True)
                shown = now
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

"""Formatting: write the audio of a Kaldi directory as 16 kHz mono files, in the layout of ESPnet's dump/raw."""

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.data.audio import (
    SAMPLE_RATE,
    WHISPER_SECONDS,
    AudioError,
    cut,
    read_audio,
    resample,
    to_int16,
    write_audio,
)
from espnet_lole.data.kaldi import NO_LANGUAGE, KaldiDir, write_table
from espnet_lole.data.summary import Tally, format_reasons
from espnet_lole.languages import check_language

FORMATS = ("flac", "wav")
PROGRESS_SECONDS = 5.0


def format_dir(src: str | Path, dst: str | Path, audio_format: str = "flac", nj: int = 4) -> list[Tally]:
    """Write the audio of a Kaldi directory as 16 kHz mono 16-bit files.

    Args:
        src: the Kaldi directory.
        dst: the directory to write, whole or not at all.
        audio_format: "flac" or "wav".
        nj: number of recordings to read at once.

    Returns:
        The counts of each language.

    Raises:
        ValueError: an option is out of range, `dst` overlaps `src` or holds other files, a language is none of
            Whisper's, or no utterance of one can be used.
    """
    if audio_format not in FORMATS:
        raise ValueError(f"expected an audio format of {', '.join(FORMATS)}, got '{audio_format}'; choose one of these")
    if nj < 1:
        raise ValueError(f"expected nj of at least 1, got {nj}; give the number of threads")
    final = Path(os.path.realpath(dst))
    kaldi = KaldiDir.read(src)
    for language in kaldi.by_language():
        if language != NO_LANGUAGE:
            check_language(language, kaldi.path / "utt2lang")
    with atomic_folder(final, [src]) as folder:
        (folder / "data").mkdir()
        samples, dropped = _write_data(kaldi, folder / "data", audio_format, nj)
        tallies = _count(kaldi, Path(dst), samples, dropped)
        wav = {utt: str(final / "data" / audio_name(utt, audio_format)) for utt in samples}
        replace(kaldi.subset(samples), wav=wav, segments=None, utt2speed={}).write(folder)
        write_table(folder / "utt2num_samples", samples)
        write_table(folder / "skipped", dropped)
        (folder / "feats_type").write_text("raw\n", encoding="utf-8")
        (folder / "audio_format").write_text(f"{audio_format}\n", encoding="utf-8")
    return tallies


def audio_name(utt: str, audio_format: str) -> str:
    """Return the file name of an utterance's audio; slashes in the id are escaped."""
    return f"{utt.replace('/', '%2F')}.{audio_format}"


def _count(kaldi: KaldiDir, dst: Path, samples: dict[str, int], dropped: dict[str, str]) -> list[Tally]:
    """Count what was written and dropped of each language; a language of which nothing was written is an error."""
    groups = kaldi.by_language()
    if not groups:
        raise ValueError(f"{kaldi.path}: expected utterances, but wav.scp and text are empty; prepare the data again")
    tallies = []
    for language, utts in groups.items():
        written = [utt for utt in utts if utt in samples]
        reasons = {utt: dropped[utt] for utt in utts if utt in dropped}
        if not written and not (language == NO_LANGUAGE and samples):
            raise ValueError(
                f"{kaldi.path}: expected audio in '{language}', none of {len(utts)} utterances can be used: "
                f"{format_reasons(reasons)}; first: {' '.join(min(reasons.items()))}; "
                "correct its source, or leave the language out with --langs"
            )
        is_test = dst.name.startswith("test")
        too_short = tuple(utt for utt in written if is_test and samples[utt] < WHISPER_SECONDS[0] * SAMPLE_RATE)
        tallies.append(Tally.count(kaldi, dst, language, written, samples, reasons, too_short))
    return tallies


def _write_data(kaldi: KaldiDir, folder: Path, audio_format: str, nj: int) -> tuple[dict[str, int], dict[str, str]]:
    """Write the audio of every usable utterance.

    Returns:
        The length of each utterance written, in samples, and why each of the others was dropped.
    """
    dropped: dict[str, str] = {}
    recordings: dict[str, list[str]] = defaultdict(list)
    for utt in kaldi.utterances():
        problem = kaldi.problem(utt) or (None if kaldi.utt2lang.get(utt) else "not in utt2lang")
        if problem is None:
            recordings[kaldi.recording(utt)].append(utt)
        else:
            dropped[utt] = problem

    samples: dict[str, int] = {}
    pool = ThreadPoolExecutor(nj)
    try:
        jobs = [pool.submit(_convert_recording, kaldi, utts, folder, audio_format) for utts in recordings.values()]
        bar = tqdm(as_completed(jobs), str(kaldi.path), len(jobs), unit="recording", mininterval=PROGRESS_SECONDS)
        for utt, result in (item for job in bar for item in job.result().items()):
            (samples if isinstance(result, int) else dropped)[utt] = result
    finally:  # an error cancels the jobs that have not begun
        pool.shutdown(wait=True, cancel_futures=True)
    return samples, dropped


def _convert_recording(kaldi: KaldiDir, utts: list[str], folder: Path, audio_format: str) -> dict[str, int | str]:
    """Write the utterances of one recording; return utterance -> samples written, or the reason for dropping it."""
    try:
        recording, rate = read_audio(kaldi.wav[kaldi.recording(utts[0])])
    except AudioError as error:
        return dict.fromkeys(utts, " ".join(str(error).split()))
    results: dict[str, int | str] = {}
    for utt in utts:
        try:
            speech = recording if kaldi.segments is None else cut(recording, rate, kaldi.segments[utt])
            speech = resample(speech, rate * kaldi.utt2speed.get(utt, 1.0))
        except AudioError as error:
            results[utt] = str(error)
            continue
        write_audio(folder / audio_name(utt, audio_format), to_int16(speech))
        results[utt] = len(speech)
    return results

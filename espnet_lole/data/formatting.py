"""Formatting a Kaldi directory's audio as 16 kHz mono files, in the layout of ESPnet's dump/raw."""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from espnet_lole.data.audio import SAMPLE_RATE, WHISPER_SECONDS, AudioError, cut, read_audio, to_16k, write_audio
from espnet_lole.data.kaldi import KaldiDir, atomic_dir, write_table
from espnet_lole.data.summary import NO_LANGUAGE, Tally, reasons, set_name

FORMATS = ("flac", "wav")
PROGRESS_SECONDS = 5.0


def audio_name(utt: str, audio_format: str) -> str:
    """Returns the file name of an utterance's audio; a slash in the id does not make a folder."""
    return f"{utt.replace('/', '%2F')}.{audio_format}"


def format_dir(src: str | Path, dst: str | Path, audio_format: str = "flac", nj: int = 4) -> list[Tally]:
    """Writes a Kaldi directory's audio as 16 kHz mono 16 bit files, in the layout of ESPnet's dump/raw.

    Args:
        src: the Kaldi directory.
        dst: the directory to write, whole or not at all.
        audio_format: "flac" or "wav".
        nj: how many recordings to read at once.

    Returns:
        What was written and dropped of each language.

    Raises:
        ValueError: an option is out of range, `src` is `dst`, or no utterance of a language could be read.
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
        tallies = _tally(kaldi, Path(dst), lengths, skipped)
        _write_dump(kaldi, folder, final, audio_format, lengths)
        write_table(folder / "skipped", skipped)
    return tallies


def _tally(kaldi: KaldiDir, dst: Path, lengths: dict[str, int], skipped: dict[str, str]) -> list[Tally]:
    """Returns what was written and dropped of each language; raises if a language has nothing left."""
    split, (shortest, longest) = set_name(dst), WHISPER_SECONDS
    groups: dict[str, list[str]] = defaultdict(list)
    for utt in kaldi.utterances():
        groups[kaldi.utt2lang.get(utt) or NO_LANGUAGE].append(utt)
    if not groups:
        raise ValueError(f"{kaldi.path}: expected utterances, got none: wav.scp and text are empty; prepare the data again")
    tallies = []
    for language, utts in sorted(groups.items()):
        kept = [utt for utt in utts if utt in lengths]
        dropped = {utt: skipped[utt] for utt in utts if utt in skipped}
        if not kept and not (language == NO_LANGUAGE and lengths):
            raise ValueError(
                f"{kaldi.path}: expected audio in '{language}', none of {len(utts)} utterances can be used: {reasons(dropped)}; "
                f"first: {' '.join(min(dropped.items()))}; mend its source, or leave the language out with --langs"
            )
        seconds, speakers = sum(lengths[utt] for utt in kept) / SAMPLE_RATE, len({kaldi.speaker(utt) for utt in kept})
        unfit = tuple(utt for utt in kept if not shortest <= lengths[utt] / SAMPLE_RATE <= longest) if split == "test" else ()
        tallies.append(Tally(split, language, len(kept), speakers, seconds, dropped, dst / "skipped", unfit))
    return tallies


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
    for results in _parallel(job, list(recordings), nj, kaldi.path):
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
        try:
            own = samples if kaldi.segments is None else cut(samples, rate, kaldi.segments[utt])
            out = to_16k(own, rate * kaldi.utt2speed.get(utt, 1.0))
        except AudioError as error:
            results[utt] = str(error)
            continue
        write_audio(folder / audio_name(utt, audio_format), out)
        results[utt] = len(out)
    return results


def _parallel(
    job: Callable[[str], dict[str, int | str]], items: list[str], nj: int, name: Path
) -> Iterator[dict[str, int | str]]:
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
                print(f"{name}: {count}/{len(items)} recordings, about {left:.0f} s left", file=sys.stderr, flush=True)
                shown = now
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

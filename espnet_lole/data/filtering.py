"""Dropping from formatted training sets what Whisper cannot be trained on, or was asked to go."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from espnet_lole.data.audio import SAMPLE_RATE, WHISPER_SECONDS
from espnet_lole.data.corpora import check_selected
from espnet_lole.data.kaldi import KaldiDir, atomic_dir, read_table, write_table
from espnet_lole.data.summary import NO_LANGUAGE, Tally, reasons, set_name

MAX_TOKENS = 444  # of a transcript: Whisper's 448 less its prompt of 4
DUMP_MARKS = ("feats_type", "audio_format")


def filter_dir(
    src: str | Path, dst: str | Path, min_seconds: float, max_seconds: float, langs: Sequence[str] = ()
) -> list[Tally]:
    """Keeps a formatted directory's utterances of some languages that are neither too short nor too long.

    Args:
        src: a directory `format_dir` wrote; the audio stays there.
        dst: the directory to write, whole or not at all.
        min_seconds: the shortest to keep.
        max_seconds: the longest to keep.
        langs: the languages to keep; all by default.

    Returns:
        What was kept and dropped of each language.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: the bounds or languages do not fit, or a language loses every utterance.
    """
    _check_filter(src, dst, min_seconds, max_seconds)
    kaldi, lengths = KaldiDir.read(src), _read_lengths(Path(src) / "utt2num_samples")
    present = set(kaldi.utt2lang.values())
    if not present:
        raise ValueError(f"{src}: expected utterances with a language, got none in utt2lang; run `lole_data format` again")
    check_selected(langs, present, str(Path(src) / "utt2lang"))
    kept: dict[str, int] = {}
    tallies = []
    for language in sorted(set(langs) or present):
        own = [utt for utt in kaldi.utterances() if kaldi.utt2lang.get(utt, NO_LANGUAGE) == language]
        found = {utt: _unfit(kaldi, utt, lengths, min_seconds, max_seconds) for utt in own}
        dropped = {utt: why for utt, why in found.items() if why is not None}
        fit = {utt: lengths[utt] for utt in own if utt not in dropped}
        if not fit:
            raise ValueError(
                f"{src}: expected utterances in '{language}' to train on, none of {len(own)} fits: {reasons(dropped)}; "
                "change --min_wav_duration or --max_wav_duration, mend the data, or leave the language out with --langs"
            )
        kept |= fit
        speakers = len({kaldi.speaker(utt) for utt in fit})
        seconds = sum(fit.values()) / SAMPLE_RATE
        tallies.append(Tally(set_name(dst), language, len(fit), speakers, seconds, dropped, Path(dst) / "skipped"))
    _write_kept(kaldi, Path(dst), kept, {utt: why for tally in tallies for utt, why in tally.dropped.items()})
    return tallies


def _check_filter(src: str | Path, dst: str | Path, min_seconds: float, max_seconds: float) -> None:
    """Raises if the bounds are not in order or beyond Whisper's, or the output is the input."""
    shortest, longest = WHISPER_SECONDS
    if not shortest <= min_seconds <= max_seconds <= longest:
        raise ValueError(
            f"expected {shortest} <= --min_wav_duration <= --max_wav_duration <= {longest:g} seconds, what Whisper takes, "
            f"got {min_seconds:g} and {max_seconds:g}; correct them"
        )
    if os.path.realpath(src) == os.path.realpath(dst):
        raise ValueError(f"expected dst to differ from src, got {src} for both; choose another dst")


def _unfit(kaldi: KaldiDir, utt: str, lengths: dict[str, int], min_seconds: float, max_seconds: float) -> str | None:
    """Returns why an utterance cannot be trained on, or None if it can."""
    problem = kaldi.problem(utt) or (None if utt in lengths else "not in utt2num_samples")
    if problem:
        return problem
    seconds = lengths[utt] / SAMPLE_RATE
    if seconds < min_seconds:
        return f"shorter than {min_seconds:g} s: {seconds:.2f} s"
    if seconds > max_seconds:
        return f"longer than {max_seconds:g} s: {seconds:.2f} s"
    tokens = _count_tokens(kaldi.text[utt])
    return f"transcript over {MAX_TOKENS} tokens: {tokens}" if tokens > MAX_TOKENS else None


def _count_tokens(text: str) -> int:
    """Returns how many tokens a transcript has, or at most has if these are few: no token is shorter than a byte."""
    size = len(text.encode()) + 1  # the space before it
    if size <= MAX_TOKENS:
        return size
    from whisper.tokenizer import get_encoding

    return len(get_encoding("multilingual").encode_ordinary(f" {text}"))


def _write_kept(kaldi: KaldiDir, dst: Path, kept: dict[str, int], dropped: dict[str, str]) -> None:
    """Writes the kept utterances' tables, the dropped ones' list and the marks of a formatted directory."""
    tables = ({utt: table[utt] for utt in kept} for table in (kaldi.wav, kaldi.text, kaldi.utt2spk, kaldi.utt2lang))
    with atomic_dir(dst) as folder:
        KaldiDir(dst, *tables).write(folder)
        write_table(folder / "utt2num_samples", kept)
        write_table(folder / "skipped", dropped)
        for name in DUMP_MARKS:
            shutil.copyfile(kaldi.path / name, folder / name)


def _read_lengths(path: Path) -> dict[str, int]:
    """Reads utt2num_samples."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a file {path}, found none; run `lole_data format` first")
    lengths = {}
    for utt, value in read_table(path).items():
        if not value.isdecimal():
            raise ValueError(f"{path}: expected a number of samples for '{utt}', got '{value}'; format the directory again")
        lengths[utt] = int(value)
    return lengths

"""Filtering: drop utterances from formatted training sets that Whisper cannot be trained on, or by their language."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.data.audio import SAMPLE_RATE, WHISPER_SECONDS
from espnet_lole.data.corpora import check_selected
from espnet_lole.data.kaldi import NO_LANGUAGE, KaldiDir, read_lengths, write_table
from espnet_lole.data.summary import Tally, format_reasons
from espnet_lole.ownership import check_output

MAX_TOKENS = 444  # of a transcript: Whisper's 448 minus its prompt of 4
DUMP_MARKS = ("feats_type", "audio_format")


def filter_dir(
    src: str | Path, dst: str | Path, min_seconds: float, max_seconds: float, langs: Sequence[str] = ()
) -> list[Tally]:
    """Select the utterances of a formatted directory by language, duration and length of the transcript.

    Args:
        src: a directory written by `format_dir`; the audio stays there.
        dst: the directory to write, whole or not at all.
        min_seconds: the shortest duration.
        max_seconds: the longest duration.
        langs: the languages to select; all by default.

    Returns:
        The counts of each language.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: the bounds or languages are out of range, a language loses every utterance, or `dst` overlaps `src`
            or holds other files.
    """
    check_output(dst, [src])
    _check_options(min_seconds, max_seconds)
    kaldi, samples = KaldiDir.read(src), read_lengths(Path(src) / "utt2num_samples")
    groups = {language: utts for language, utts in kaldi.by_language().items() if language != NO_LANGUAGE}
    if not groups:
        raise ValueError(f"{src}: expected utterances with a language, got none in utt2lang; format it again")
    check_selected(langs, groups, Path(src) / "utt2lang")
    selected: list[str] = []
    tallies = []
    for language in sorted(set(langs) or groups):
        problems = {utt: _problem(kaldi, utt, samples, min_seconds, max_seconds) for utt in groups[language]}
        dropped = {utt: problem for utt, problem in problems.items() if problem is not None}
        usable = [utt for utt in groups[language] if utt not in dropped]
        if not usable:
            raise ValueError(
                f"{src}: expected utterances in '{language}' to train on, none of {len(dropped)} fits: "
                f"{format_reasons(dropped)}; change --min_wav_duration or --max_wav_duration, correct the data, "
                "or leave the language out with --langs"
            )
        selected += usable
        tallies.append(Tally.count(kaldi, dst, language, usable, samples, dropped))
    with atomic_folder(dst, [src]) as folder:
        kaldi.subset(selected).write(folder)
        write_table(folder / "utt2num_samples", {utt: samples[utt] for utt in selected})
        write_table(folder / "skipped", {utt: reason for tally in tallies for utt, reason in tally.dropped.items()})
        for name in DUMP_MARKS:
            shutil.copyfile(kaldi.path / name, folder / name)
    return tallies


def _check_options(min_seconds: float, max_seconds: float) -> None:
    """Check that the bounds are in order and within Whisper's."""
    shortest, longest = WHISPER_SECONDS
    if not shortest <= min_seconds <= max_seconds <= longest:
        raise ValueError(
            f"expected {shortest} <= --min_wav_duration <= --max_wav_duration <= {longest:g} seconds, "
            f"the limits of Whisper, got {min_seconds:g} and {max_seconds:g}; correct them"
        )


def _problem(kaldi: KaldiDir, utt: str, samples: dict[str, int], min_seconds: float, max_seconds: float) -> str | None:
    """Return why an utterance cannot be trained on, or None if it can."""
    problem = kaldi.problem(utt) or (None if utt in samples else "not in utt2num_samples")
    if problem:
        return problem
    seconds = samples[utt] / SAMPLE_RATE
    if seconds < min_seconds:
        return f"shorter than {min_seconds:g} s: {seconds:.2f} s"
    if seconds > max_seconds:
        return f"longer than {max_seconds:g} s: {seconds:.2f} s"
    tokens = _count_tokens(kaldi.text[utt])
    return f"transcript over {MAX_TOKENS} tokens: {tokens}" if tokens > MAX_TOKENS else None


def _count_tokens(text: str) -> int:
    """Count the tokens of a transcript; a short one is not tokenized, as it has at most one token per byte."""
    size = len(text.encode()) + 1  # the space before it
    if size <= MAX_TOKENS:
        return size
    from espnet_lole.whisper.tokenizer import build_encoding  # slow: imports transformers

    return len(build_encoding().encode_ordinary(f" {text}"))

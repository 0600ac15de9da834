"""Speed perturbation: training utterances named again, to be played faster and slower when they are formatted."""

from collections.abc import Sequence
from pathlib import Path

from espnet_lole.data.kaldi import KaldiDir, atomic_dir, check_speed
from espnet_lole.data.summary import NO_LANGUAGE, Tally, set_name


def perturb_dir(src: str | Path, dst: str | Path, factors: Sequence[str]) -> list[Tally]:
    """Writes a directory that has each utterance once for each factor, as stage 2 of ESPnet's asr.sh does.

    Other factors than 1 have `sp<factor>-` before the ids of utterances and speakers, and are written to `utt2speed`;
    the audio changes when `format_dir` reads it.

    Args:
        src: the Kaldi directory.
        dst: the directory to write, whole or not at all.
        factors: how many times as fast, for example 0.9, 1.0 and 1.1.

    Returns:
        What was written of each language.

    Raises:
        ValueError: a factor is no number from 0.5 to 2 or comes twice, or `src` is perturbed already.
    """
    speeds = {factor: check_speed(factor, "--factors") for factor in factors}
    if len(set(speeds.values())) < len(factors):
        raise ValueError(f"expected factors that differ, got {' '.join(factors)}; leave one out")
    kaldi = KaldiDir.read(src)
    if kaldi.utt2speed:
        raise ValueError(f"expected a directory without utt2speed, got {src}, which is perturbed already; perturb its source")
    whole = KaldiDir(Path(dst), {}, {}, {}, {}, None if kaldi.segments is None else {})
    for factor, speed in speeds.items():
        _add_copy(whole, kaldi, "" if speed == 1 else f"sp{factor}-", speed)
    with atomic_dir(dst) as folder:
        whole.write(folder)
    return [_tally(whole, language, set_name(dst)) for language in sorted(set(whole.utt2lang.values()) or {NO_LANGUAGE})]


def _add_copy(whole: KaldiDir, kaldi: KaldiDir, prefix: str, speed: float) -> None:
    """Adds each utterance under another id; with segments, the recordings stay as they are."""
    for utt in kaldi.utterances():
        for name in ("text", "utt2lang", "segments", "wav"):
            table = getattr(kaldi, name)
            if table and utt in table:
                getattr(whole, name)[prefix + utt] = table[utt]
        whole.utt2spk[prefix + utt] = prefix + kaldi.speaker(utt)
        if speed != 1:
            whole.utt2speed[prefix + utt] = speed
    if kaldi.segments is not None:
        whole.wav = dict(kaldi.wav)


def _tally(whole: KaldiDir, language: str, split: str) -> Tally:
    """Returns what was written of a language."""
    own = [utt for utt in whole.utt2spk if whole.utt2lang.get(utt, NO_LANGUAGE) == language]
    return Tally(split, language, len(own), len({whole.utt2spk[utt] for utt in own}))

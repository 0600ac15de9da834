"""Speed perturbation: repeat training utterances with speed factors, which formatting applies to the audio."""

from collections.abc import Sequence
from pathlib import Path

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.data.kaldi import KaldiDir, parse_speed
from espnet_lole.data.summary import Tally


def perturb_dir(src: str | Path, dst: str | Path, factors: Sequence[str]) -> list[Tally]:
    """Write a directory that has each utterance once for each speed factor, as stage 2 of ESPnet's asr.sh does.

    Factors other than 1 put `sp<factor>-` before the ids of utterances and speakers, and are listed in `utt2speed`.

    Args:
        src: the Kaldi directory.
        dst: the directory to write, whole or not at all.
        factors: the speed factors, for example 0.9, 1.0 and 1.1.

    Returns:
        The counts of each language.

    Raises:
        ValueError: a factor is not a number from 0.5 to 2 or is repeated, or `src` is perturbed already.
    """
    speeds = {factor: parse_speed(factor, "--factors") for factor in factors}
    if len(set(speeds.values())) < len(factors):
        raise ValueError(f"expected factors that differ, got {' '.join(factors)}; leave one out")
    kaldi = KaldiDir.read(src)
    if kaldi.utt2speed:
        raise ValueError(
            f"{src} is perturbed already, as it has the file utt2speed; perturb the directory it was made from"
        )
    whole = KaldiDir(Path(dst), segments=None if kaldi.segments is None else {})
    for factor, speed in speeds.items():
        _add_copy(whole, kaldi, "" if speed == 1 else f"sp{factor}-", speed)
    with atomic_folder(dst, [src]) as folder:
        whole.write(folder)
    return [Tally.count(whole, dst, language, utts) for language, utts in whole.by_language().items()]


def _add_copy(whole: KaldiDir, kaldi: KaldiDir, prefix: str, speed: float) -> None:
    """Add all utterances with a prefix before their ids; recordings that have segments remain as they are."""
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

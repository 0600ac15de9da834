"""Dev and test sets that are split off a training set, without a speaker or a recording in two sets."""

import zlib
from collections import defaultdict
from collections.abc import Mapping

from espnet_lole.data.kaldi import KaldiDir


def split_off(kaldi: KaldiDir, shares: Mapping[str, float]) -> tuple[dict[str, KaldiDir], str]:
    """Split sets off a training set by speakers, or by recordings if no speaker is known; always the same ones.

    A set gets speakers in the order of a hash of their names until none fits into its share of the utterances; the one
    with the most utterances trains.

    Args:
        kaldi: usable utterances.
        shares: set -> its share of the utterances, below 0.5.

    Returns:
        The sets, with the rest as `train`, and what was kept apart: `speaker` or `recording`.

    Raises:
        ValueError: there are too few speakers or recordings.
    """
    groups = _groups(kaldi)
    kind = "speaker" if any(kaldi.speaker(utt) != utt for utt in kaldi.text) else "recording"
    if len(groups) <= len(shares):
        raise ValueError(
            f"{kaldi.path}: expected more than {len(shares)} {kind}s to split off {' and '.join(shares)}, got "
            f"{len(groups)}; give them data of their own"
            + ("; without a column speaker, recordings are split" if kind == "speaker" else "")
        )
    order = sorted(groups, key=lambda name: (zlib.crc32(name.encode()), name))
    order.remove(max(order, key=lambda name: len(groups[name])))  # trains
    sets, left = {}, len(shares)
    for name, share in shares.items():
        left -= 1
        room, chosen = max(1, int(share * len(kaldi.text))), []
        for group in order:
            if len(groups[group]) <= room and len(chosen) < len(order) - left:
                chosen.append(group)
                room -= len(groups[group])
        chosen = chosen or [min(order, key=lambda name: len(groups[name]))]
        sets[name] = kaldi.subset([utt for group in chosen for utt in groups.pop(group)])
        order = [group for group in order if group in groups]
    return {"train": kaldi.subset([utt for utts in groups.values() for utt in utts]), **sets}, kind


def _groups(kaldi: KaldiDir) -> dict[str, list[str]]:
    """Group the utterances that share a speaker or a recording, directly or through others: name -> utterances."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            name = parents[name]
        return name

    for utt in sorted(kaldi.text):
        recording = root(f"recording {kaldi.wav[kaldi.recording(utt)]}")
        parents[recording] = root(f"speaker {kaldi.speaker(utt)}")
    groups = defaultdict(list)
    for utt in sorted(kaldi.text):
        groups[root(f"speaker {kaldi.speaker(utt)}")].append(utt)
    return {utts[0]: utts for utts in groups.values()}

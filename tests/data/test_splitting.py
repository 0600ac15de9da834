"""Sets that are split off share no speaker and no recording with the others, in every generated corpus."""

import os
import random
from itertools import combinations
from pathlib import Path

import pytest

from espnet_lole.data.kaldi import KaldiDir, KaldiSegment
from espnet_lole.data.splitting import split_off

EXAMPLES = int(os.environ.get("LOLE_FUZZ", 300))


def corpus(speakers: list[str], recordings: list[str]) -> KaldiDir:
    """Make a corpus of utterances, each by a speaker ("": unknown) in a part of a recording."""
    kaldi = KaldiDir(Path("mine.csv"), segments={})
    for number, (speaker, recording) in enumerate(zip(speakers, recordings, strict=True)):
        utt = f"u{number:04d}"
        kaldi.wav[recording], kaldi.text[utt] = f"{recording}.wav", "ja"
        kaldi.utt2spk[utt] = speaker or utt
        kaldi.segments[utt] = KaldiSegment(recording, number, number + 1)
    return kaldi


def check(kaldi: KaldiDir, shares: dict[str, float]) -> dict[str, KaldiDir]:
    """Split, and check that nothing is lost and nothing is in two sets."""
    sets, _ = split_off(kaldi, shares)
    assert list(sets) == ["train", *shares] and all(part.text for part in sets.values())
    assert sorted(utt for part in sets.values() for utt in part.text) == sorted(kaldi.text)
    for one, other in combinations(sets.values(), 2):
        assert not {*one.utt2spk.values()} & {*other.utt2spk.values()}
        assert not {*one.wav.values()} & {*other.wav.values()}
    return sets


def test_no_speaker_and_no_recording_is_in_two_sets_of_any_corpus() -> None:
    refused = 0
    for seed in range(EXAMPLES):
        chance = random.Random(seed)
        size = chance.randint(1, 40)
        speakers = chance.choices(["", *(f"s{n}" for n in range(chance.randint(1, 20)))], k=size)
        recordings = [f"r{chance.randrange(chance.choice([3, 100]))}" for _ in range(size)]
        shares = {name: chance.choice([0.01, 0.05, 0.2, 0.49]) for name in ("dev", "test")[: chance.randint(1, 2)]}
        kaldi = corpus(speakers, recordings)
        try:
            sets = check(kaldi, shares)
        except ValueError as error:
            assert "expected more than" in str(error)
            refused += 1
        else:
            assert {name: part.text for name, part in split_off(kaldi, shares)[0].items()} == {
                name: part.text for name, part in sets.items()
            }
    assert 0 < refused < EXAMPLES / 2


def test_shares_of_many_speakers_are_met() -> None:
    sets = check(
        corpus([f"s{n % 100}" for n in range(1000)], [f"r{n}" for n in range(1000)]), {"dev": 0.05, "test": 0.1}
    )
    assert (len(sets["dev"].text), len(sets["test"].text)) == (50, 100)


def test_a_speaker_of_most_of_the_corpus_trains() -> None:
    sets = check(
        corpus(["big"] * 90 + ["a"] * 5 + ["b"] * 5, [f"r{n}" for n in range(100)]), {"dev": 0.05, "test": 0.05}
    )
    assert len(sets["train"].text) == 90


@pytest.mark.parametrize(
    ("speakers", "recordings", "message"),
    [
        (
            ["s", "s", "t", "t"],
            ["a", "b", "c", "d"],
            "more than 2 speakers to split off dev and test, got 2; .* without",
        ),
        (
            ["", "", ""],
            ["a", "a", "b"],
            "mine.csv: expected more than 2 recordings .*, got 2; give them data of their own$",
        ),
    ],
)
def test_too_few_speakers_are_an_error(speakers: list[str], recordings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_off(corpus(speakers, recordings), {"dev": 0.1, "test": 0.1})

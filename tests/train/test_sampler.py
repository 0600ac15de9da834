import random

import pytest

from espnet_lole.train.sampler import BalancedIterFactory, draw_utterances, make_batches

SAMPLES = {f"{lang}{i}": 16000 + 37 * i for lang, count in (("de", 90), ("tr", 10)) for i in range(count)}
LANGS = {utt: utt[:2] for utt in SAMPLES}


def share(utts: list[str], lang: str) -> float:
    return sum(SAMPLES[utt] for utt in utts if LANGS[utt] == lang) / sum(SAMPLES[utt] for utt in utts)


@pytest.mark.parametrize("temperature", [1.0, 2.0, float("inf")])
def test_shares_follow_the_temperature(temperature):
    utts = draw_utterances(SAMPLES, LANGS, temperature, random.Random(0))
    audio = [sum(SAMPLES[u] for u in SAMPLES if LANGS[u] == lang) for lang in ("de", "tr")]
    expected = audio[1] ** (1 / temperature) / sum(a ** (1 / temperature) for a in audio)  # inf: a half
    assert share(utts, "tr") == pytest.approx(expected, abs=0.02)
    assert sum(SAMPLES[u] for u in utts) == pytest.approx(sum(SAMPLES.values()), rel=0.03)
    counts = [utts.count(utt) for utt in SAMPLES if LANGS[utt] == "tr"]
    assert max(counts) - min(counts) <= 1


def test_batches_hold_everything_within_their_size():
    utts = list(SAMPLES)
    batches = make_batches(utts, SAMPLES, 200_000, random.Random(0))
    assert sorted(u for batch in batches for u in batch) == sorted(utts)
    assert all(len(batch) * max(SAMPLES[u] for u in batch) <= 200_000 for batch in batches)


def test_processes_share_each_batch_and_epochs_differ():
    def batches(rank: int, epoch: int) -> list[list[str]]:
        return BalancedIterFactory(None, SAMPLES, LANGS, 2.0, 200_000, rank, 2, seed=3).batches(epoch)

    first, second = batches(0, 1), batches(1, 1)
    assert len(first) == len(second) and all(abs(len(a) - len(b)) <= 1 for a, b in zip(first, second, strict=True))
    assert batches(0, 1) == first != batches(0, 2)


@pytest.mark.parametrize("world_size", [2, 7, 16])
def test_no_utterance_is_lost_where_batches_would_be_smaller_than_the_number_of_processes(world_size):
    ranks = [
        BalancedIterFactory(None, SAMPLES, LANGS, 1.0, 50_000, r, world_size, seed=3).batches(1)
        for r in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1 and all(batch for batches in ranks for batch in batches)
    assert sorted(utt for batches in ranks for batch in batches for utt in batch) == sorted(SAMPLES)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="expected lang_temperature >= 1"):
        draw_utterances(SAMPLES, LANGS, 0.5, random.Random(0))
    with pytest.raises(ValueError, match="got none for \\['x'\\]"):
        draw_utterances({"x": 1}, LANGS, 1.0, random.Random(0))
    with pytest.raises(ValueError, match="expected an utterance for each of 3 processes, got 2"):
        make_batches(["de0", "de1"], SAMPLES, 200_000, random.Random(0), least=3)

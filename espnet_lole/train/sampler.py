"""Batches of similar length, drawn so that languages with little data have a larger share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
from espnet2.train.dataset import AbsDataset

JITTER = 0.1
"""Lengths change at random by at most this share before they are sorted, so that batches differ between epochs."""


def draw_utterances(
    samples: Mapping[str, int], langs: Mapping[str, str], temperature: float, rng: random.Random
) -> list[str]:
    """Draw the utterances of an epoch, with shares of the languages proportional to ``hours ** (1 / temperature)``.

    An epoch has as much audio as the data. An utterance is drawn again only after all others of its language.

    Args:
        samples: length of each utterance.
        langs: language of each utterance.
        temperature: 1 leaves the shares as they are, infinity makes them equal.
        rng: source of randomness.

    Raises:
        ValueError: the temperature is below 1, or an utterance has no language.
    """
    if temperature < 1:
        raise ValueError(f"expected lang_temperature >= 1, got {temperature}")
    if missing := sorted(set(samples) - set(langs)):
        raise ValueError(f"expected a language for each utterance, got none for {missing[:3]}: run stage 4 again")
    groups: dict[str, list[str]] = {}
    for utt in sorted(samples):
        groups.setdefault(langs[utt], []).append(utt)
    audio = {lang: sum(samples[utt] for utt in utts) for lang, utts in groups.items()}
    targets = {lang: size ** (1 / temperature) for lang, size in audio.items()}
    scale = sum(audio.values()) / sum(targets.values())
    drawn = []
    for lang, utts in groups.items():
        passes, rest = divmod(round(len(utts) * targets[lang] * scale / audio[lang]), len(utts))
        drawn += [*utts * passes, *rng.sample(utts, rest)]
    return drawn


def make_batches(
    utts: list[str], samples: Mapping[str, int], batch_bins: int, rng: random.Random, least: int = 1
) -> list[list[str]]:
    """Make batches of similar length, in random order.

    Args:
        utts: the utterances.
        samples: length of each utterance.
        batch_bins: samples of a batch, padding included; more only where ``least`` needs it.
        rng: source of randomness.
        least: fewest utterances of a batch: one for each process.

    Raises:
        ValueError: there are fewer utterances.
    """
    if len(utts) < least:
        raise ValueError(
            f"expected an utterance for each of {least} processes, got {len(utts)} in all: start fewer processes"
        )
    batches: list[list[str]] = []
    longest = 0
    order = sorted((samples[utt] * rng.uniform(1 - JITTER, 1 + JITTER), utt) for utt in utts)
    for _, utt in order:
        longest = max(longest, samples[utt])
        if not batches or len(batches[-1]) >= least and longest * (len(batches[-1]) + 1) > batch_bins:
            batches.append([])
            longest = samples[utt]
        batches[-1].append(utt)
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [batches[-2] + batches[-1]]
    rng.shuffle(batches)
    return batches


class BalancedIterFactory(AbsIterFactory):
    """Draws new batches for every epoch, the same on every process, and takes this process's share of each.

    Args:
        dataset: of all utterances.
        samples: length of each utterance.
        langs: language of each utterance.
        temperature: of the languages' shares.
        batch_bins: samples of a batch, padding included.
        rank: of this process.
        world_size: number of processes.
        seed: of the draws, together with the epoch.
        num_workers: processes that read audio.
        collate_fn: pads a batch.
        pin_memory: for a GPU.
    """

    def __init__(
        self,
        dataset: AbsDataset,
        samples: Mapping[str, int],
        langs: Mapping[str, str],
        temperature: float,
        batch_bins: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.samples, self.langs = dataset, samples, langs
        self.temperature, self.batch_bins, self.seed = temperature, batch_bins, seed
        self.rank, self.world_size = rank, world_size
        self.loading = {"num_workers": num_workers, "collate_fn": collate_fn, "pin_memory": pin_memory}

    def batches(self, epoch: int) -> list[list[str]]:
        """Return this process's share of each batch of an epoch."""
        rng = random.Random(f"{self.seed} {epoch}")
        utts = draw_utterances(self.samples, self.langs, self.temperature, rng)
        batches = make_batches(utts, self.samples, self.batch_bins, rng, self.world_size)
        return [batch[self.rank :: self.world_size] for batch in batches]

    def build_iter(self, epoch: int, shuffle: bool | None = None) -> Iterator:
        """The batches of an epoch, as ESPnet's trainer takes them."""
        return SequenceIterFactory(self.dataset, self.batches(epoch), shuffle=False, **self.loading).build_iter(epoch)

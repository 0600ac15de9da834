"""Counts of the utterances that a stage writes and drops, as one table of languages and sets."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_lole.data.audio import SAMPLE_RATE, WHISPER_SECONDS
from espnet_lole.data.kaldi import KaldiDir

HOURS_FROM = 36000.0  # a table with at least this many seconds is in hours, not in minutes


@dataclass(frozen=True)
class Tally:
    """Counts of one language's set after a stage.

    Attributes:
        split: the set: train, dev or test.
        language: its code, or NO_LANGUAGE.
        utterances: number of utterances written.
        speakers: number of their speakers.
        seconds: their duration, None if unknown.
        dropped: utterance -> reason for dropping it, `kind` or `kind: detail`.
        dropped_file: the file that lists the dropped utterances.
        too_short: utterances of a test set that are written although Whisper needs longer audio.
    """

    split: str
    language: str
    utterances: int
    speakers: int
    seconds: float | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    dropped_file: Path | None = None
    too_short: tuple[str, ...] = ()

    @classmethod
    def count(
        cls,
        kaldi: KaldiDir,
        folder: str | Path,
        language: str,
        utts: Collection[str],
        samples: Mapping[str, int] | None = None,
        dropped: Mapping[str, str] | None = None,
        too_short: tuple[str, ...] = (),
    ) -> "Tally":
        """Count utterances.

        Args:
            kaldi: the directory that knows their speakers.
            folder: the directory that is written: train, train_sp, test_de, ...
            language: their language.
            utts: the utterances that are written.
            samples: utterance -> length at 16 kHz, if known.
            dropped: the language's other utterances -> reason; `folder` lists them in its file `skipped`.
            too_short: see the class.
        """
        seconds = None if samples is None else sum(samples[utt] for utt in utts) / SAMPLE_RATE
        speakers = len({kaldi.speaker(utt) for utt in utts})
        dropped_file = None if dropped is None else Path(folder) / "skipped"
        split = Path(folder).name.partition("_")[0]
        return cls(split, language, len(utts), speakers, seconds, dict(dropped or {}), dropped_file, too_short)


def format_reasons(dropped: Mapping[str, str]) -> str:
    """Count the dropped utterances by kind of reason, e.g. "1 empty transcript (c), 2 missing file (a, ...)".

    Args:
        dropped: utterance -> `kind` or `kind: detail`.
    """
    kinds: dict[str, list[str]] = {}
    for utt in sorted(dropped):
        kinds.setdefault(dropped[utt].partition(":")[0], []).append(utt)
    return ", ".join(f"{len(utts)} {kind} ({_first(utts)})" for kind, utts in sorted(kinds.items()))


def _first(utts: Sequence[str]) -> str:
    """Return the first utterance, with dots if there are more."""
    return utts[0] + (", ..." if len(utts) > 1 else "")


def format_summary(tallies: Sequence[Tally]) -> list[str]:
    """Format the lines of a table of languages by sets, then of what was dropped and why."""
    lines = _table(tallies)
    for tally in tallies:
        if tally.dropped:
            listed = f"; all listed in {tally.dropped_file}" if tally.dropped_file else ""
            lines.append(f"dropped from {tally.language} {tally.split}: {format_reasons(tally.dropped)}{listed}")
        if tally.too_short:
            lines.append(
                f"{tally.language} {tally.split}: {len(tally.too_short)} shorter than {WHISPER_SECONDS[0]} s "
                f"({_first(tally.too_short)}); the hypotheses will be empty"
            )
    return lines


def _table(tallies: Sequence[Tally]) -> list[str]:
    """Format the table: a row for each language and their total, a block of columns for each set."""
    languages = sorted({tally.language for tally in tallies})
    known = [tally.seconds for tally in tallies if tally.seconds is not None]
    unit, size = ("h", 3600.0) if sum(known) >= HOURS_FROM else ("min", 60.0)
    blocks = [["", "lang", *languages, "total"]]
    for split in dict.fromkeys(tally.split for tally in tallies):
        of_split = [tally for tally in tallies if tally.split == split]
        groups = [[tally for tally in of_split if tally.language == language] for language in languages]
        head = ["utts", *([unit] if known else []), "spk", "dropped"]
        rows = [head, *(_cells(group, size, bool(known)) for group in [*groups, of_split])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        blocks.append([split, *(" ".join(map(str.rjust, row, widths)) for row in rows)])
    padded = [[line.ljust(max(map(len, block))) for line in block] for block in blocks]
    return [" | ".join(line).rstrip() for line in zip(*padded, strict=True)]


def _cells(group: Sequence[Tally], size: float, timed: bool) -> list[str]:
    """Format the sums of some tallies as cells, with their duration in units of `size` seconds if `timed`."""
    if not group:
        return ["-"] * (4 if timed else 3)
    duration = [f"{sum(tally.seconds or 0.0 for tally in group) / size:,.1f}"] if timed else []
    rows = [(tally.utterances, tally.speakers, len(tally.dropped)) for tally in group]
    utterances, speakers, dropped = (f"{sum(column):,}" for column in zip(*rows, strict=True))
    return [utterances, *duration, speakers, dropped]

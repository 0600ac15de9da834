"""What a stage kept and dropped, in one table for all languages and sets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

NO_LANGUAGE = "?"
HOURS_FROM = 36000.0  # seconds in a table from which it counts in hours


@dataclass(frozen=True)
class Tally:
    """What a stage kept and dropped of one language's set.

    Attributes:
        split: the set: train, dev or test.
        language: its code, or NO_LANGUAGE.
        utterances: how many are kept.
        speakers: how many speakers these have.
        seconds: their length, None where it is not known.
        dropped: utterance -> why it was dropped, `kind` or `kind: detail`.
        listed: the file that lists the dropped ones.
        unfit: utterances of a test set that are kept although Whisper cannot take them.
    """

    split: str
    language: str
    utterances: int
    speakers: int
    seconds: float | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    listed: Path | None = None
    unfit: tuple[str, ...] = ()


def set_name(folder: str | Path) -> str:
    """Returns the set a directory is of: train for train_de."""
    return Path(folder).name.partition("_")[0]


def reasons(dropped: dict[str, str]) -> str:
    """Returns how many utterances were dropped for each kind of reason, and which came first.

    Args:
        dropped: utterance -> `kind` or `kind: detail`.

    Returns:
        For example "1 empty transcript (c), 2 missing file (a, ...)".
    """
    kinds: dict[str, list[str]] = {}
    for utt in sorted(dropped):
        kinds.setdefault(dropped[utt].partition(":")[0], []).append(utt)
    return ", ".join(f"{len(utts)} {kind} ({_some(utts)})" for kind, utts in sorted(kinds.items()))


def _some(utts: Sequence[str]) -> str:
    """Returns the first of a list, and whether there are more."""
    return utts[0] + (", ..." if len(utts) > 1 else "")


def summary(tallies: Sequence[Tally]) -> list[str]:
    """Returns a table of languages by sets, then what was dropped and why.

    Args:
        tallies: at most one for a language and set.

    Returns:
        Its lines.
    """
    lines = _table(tallies)
    for tally in tallies:
        if tally.dropped:
            told = f"dropped from {tally.language} {tally.split}: {reasons(tally.dropped)}"
            lines.append(told + (f"; all listed in {tally.listed}" if tally.listed else ""))
    for tally in tallies:
        if tally.unfit:
            lines.append(
                f"kept in {tally.language} {tally.split} although Whisper takes 0.025 to 30 s, their hypotheses will be empty: "
                f"{len(tally.unfit)} ({_some(tally.unfit)})"
            )
    return lines


def _table(tallies: Sequence[Tally]) -> list[str]:
    """Returns the table's lines: a row for each language and their total, a block of columns for each set."""
    languages = sorted({tally.language for tally in tallies})
    known = [tally.seconds for tally in tallies if tally.seconds is not None]
    unit, size = ("h", 3600.0) if sum(known) >= HOURS_FROM else ("min", 60.0)
    blocks = [["", "lang", *languages, "total"]]
    for split in dict.fromkeys(tally.split for tally in tallies):
        own = [tally for tally in tallies if tally.split == split]
        groups = [[tally for tally in own if tally.language == language] for language in languages]
        head = ["utts", *([unit] if known else []), "spk", "dropped"]
        rows = [head, *(_cells(group, size, bool(known)) for group in [*groups, own])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        blocks.append([split, *(" ".join(map(str.rjust, row, widths)) for row in rows)])
    padded = [[line.ljust(max(map(len, block))) for line in block] for block in blocks]
    return [" | ".join(line).rstrip() for line in zip(*padded, strict=True)]


def _cells(group: Sequence[Tally], size: float, timed: bool) -> list[str]:
    """Returns the cells of the sum of some tallies, with their length in units of `size` seconds if asked for."""
    if not group:
        return ["-"] * (4 if timed else 3)
    length = [f"{sum(tally.seconds or 0.0 for tally in group) / size:,.1f}"] if timed else []
    counts = [sum(values) for values in zip(*((t.utterances, t.speakers, len(t.dropped)) for t in group), strict=True)]
    utterances, speakers, dropped = (f"{count:,}" for count in counts)
    return [utterances, *length, speakers, dropped]

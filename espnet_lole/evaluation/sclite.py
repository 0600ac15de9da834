"""The files of ESPnet's scoring: ``ref.trn`` and ``hyp.trn``, which ``sclite`` reads, and its ``result.txt``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jiwer

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.evaluation.rates import Counts, Pair, count, format_percent

SUM = "Sum/Avg"
"""Name of the row of all speakers in ``result.txt``."""
_SPACE = "<space>"
"""ESPnet's character for a space between words."""
_MARKUP = str.maketrans("{@;()", "｛＠；（）")
"""What ``sclite`` takes for markup -> its full-width form."""


def write_scores(folder: Path, title: str, pairs: Sequence[Pair], metric: str, normalization: str) -> None:
    """Write ``ref.trn``, ``hyp.trn`` and ``result.txt``.

    Args:
        folder: ``<inference tag>/<set>/score_<metric>``.
        title: heading of the table.
        pairs: all utterances of the set.
        metric: ``wer`` or ``cer``.
        normalization: its name, for ``result.txt``.
    """
    ids = trn_ids(pairs)
    for name, side in (("ref", 0), ("hyp", 1)):
        lines = (f"{trn_text(pair.units(metric)[side])}\t({ids[pair.utt]})\n" for pair in pairs)
        write_text_atomic(folder / f"{name}.trn", "".join(lines))
    speakers: dict[str, list[Pair]] = {}
    for pair in pairs:
        speakers.setdefault(pair.speaker, []).append(pair)
    table = sum_table(title, {speaker: count(group, metric) for speaker, group in speakers.items()})
    notes = (
        f"normalisation: {normalization}\n"
        f"empty references, whose hypotheses are insertions: {sum(not pair.ref for pair in pairs)}\n"
        "alignments with the fewest errors, which now and then are others than those of the table:\n"
    )
    write_text_atomic(folder / "result.txt", f"{table}\n{notes}\n{draw_alignments(pairs, metric)}")


def read_result(file: Path, normalization: str) -> list[str]:
    """Read the row of all speakers in a ``result.txt`` of this normalisation; empty if it is of another or of others.

    Returns:
        Sentences, units, and the percentages Corr, Sub, Del, Ins, Err and S.Err.
    """
    text = file.read_text(encoding="utf-8")
    if f"\nnormalisation: {normalization}\n" not in text:
        return []
    row = next(line for line in text.splitlines() if line.startswith(f"| {SUM}"))
    return row.replace(SUM, "").replace("|", " ").split()


def trn_ids(pairs: Sequence[Pair]) -> dict[str, str]:
    """Return utterance -> ``speaker-utterance``, of which ``sclite`` reads every one.

    It takes the last parenthesis for the beginning of an id and does not see the case of letters: parentheses, and
    capitals where ids differ in nothing else, are written as in a URL, ``(`` as ``%28``.
    """
    ids = {pair.utt: f"{pair.speaker}-{pair.utt}" for pair in pairs}
    alike = len({name.lower() for name in ids.values()}) < len(ids)
    odd = re.compile("[()A-Z]" if alike else "[()]")
    return {utt: odd.sub(lambda match: f"%{ord(match[0]):x}", name) for utt, name in ids.items()}


def trn_text(units: Sequence[str]) -> str:
    """Write words or characters with one space between them, as ESPnet's tokenizers do."""
    return " ".join(_SPACE if unit == " " else unit.translate(_MARKUP) for unit in units)


def sum_table(title: str, speakers: Mapping[str, Counts]) -> str:
    """Write the table of ``sclite``: sentences and units, percentages of each speaker and of all.

    Args:
        title: its heading.
        speakers: speaker -> counts; those of a speaker whose references are empty are written with a star, as there.
    """
    rows = {"SPKR": None, **speakers, SUM: sum(speakers.values(), Counts())}
    name_width = max(6, *map(len, rows))
    unit_width = max(5, len(str(rows[SUM].units)))
    lines = [_row(name, counts, name_width, unit_width) for name, counts in rows.items()]
    inner = len(lines[0]) - 2
    thin = re.sub("[^|]", "-", lines[0]).replace("-|-", "-+-")
    head = [f",{'-' * inner}.", f"|{title:^{inner}}|", f"|{'-' * inner}|"]
    body = f"\n{thin}\n".join(lines[:-1])
    return "\n".join([*head, body, f"|{'=' * inner}|", lines[-1], f"`{'-' * inner}'", ""])


def _row(name: str, counts: Counts | None, name_width: int, unit_width: int) -> str:
    """Write a row of the table, or without counts its heads."""
    if counts is None:
        figures, cells = ("# Snt", "# Wrd"), (" Corr", "Sub", "Del", "Ins", "Err", "S.Err")
    elif counts.units:
        figures, cells = (counts.sentences, counts.units), map(format_percent, counts.percentages)
    else:
        numbers = counts.correct, counts.substitutions, counts.deletions, counts.insertions, counts.errors
        wrong = format_percent(100 * counts.sentence_errors / counts.sentences)
        figures, cells = (counts.sentences, 0), (*(f"{number}*" for number in numbers), wrong)
    snt, wrd = figures
    return f"| {name:{name_width}} | {snt:>5} {wrd:>{unit_width}} |{'  '.join(f'{cell:>5}' for cell in cells)} |"


def draw_alignments(pairs: Sequence[Pair], metric: str) -> str:
    """Draw an alignment with the fewest errors of each pair, for a person: S, D and I stand below the errors."""
    texts = ([(" " if metric == "wer" else "").join(pair.units(metric)[side]) for pair in pairs] for side in (0, 1))
    process = {"wer": jiwer.process_words, "cer": jiwer.process_characters}[metric]
    text = jiwer.visualize_alignment(process(*texts), show_measures=False, skip_correct=False)
    return re.sub(r"(?m)^=== SENTENCE (\d+) ===$", lambda match: f"=== {pairs[int(match[1]) - 1].utt} ===", text)

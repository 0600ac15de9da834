"""The layout of subtitles: two lines of 42 characters at most, in any script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from unicodedata import east_asian_width

import regex

Cue = tuple[float, float, str]
"""Start and end in seconds, and the lines of the text, separated by line breaks."""
MAX_LINE_WIDTH = 42
MAX_LINE_COUNT = 2
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_CHARACTER = rf"(?={_UNSPACED})\X[\p{{Po}}\p{{Pe}}\p{{Pf}}ー々]*"
_UNITS = regex.compile(rf" ?[\p{{Ps}}\p{{Pi}}]*(?:{_CHARACTER}|(?:(?! |{_UNSPACED})\X)+)")
"""What no line is broken in, with the space before it: a word, or a character of a script without spaces."""


def cues(start: float, end: float, text: str) -> Iterator[Cue]:
    """Divide a segment into cues, whose times are proportional to the width of their texts.

    Args:
        start: seconds.
        end: seconds.
        text: any text that is not blank; white space becomes one space.
    """
    lines = _balance(_units(" ".join(text.split())))
    blocks = [lines[i : i + MAX_LINE_COUNT] for i in range(0, len(lines), MAX_LINE_COUNT)]
    total, position = sum(map(width, lines)), 0
    for block in blocks:
        first, position = position, position + sum(map(width, block))
        yield start + (end - start) * first / total, start + (end - start) * position / total, "\n".join(block)


def width(text: str) -> int:
    """Count the columns of a text: two for a wide character, such as those of Chinese."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _units(text: str) -> list[str]:
    """Divide a text into units; one that does not fit on a line, such as a web address, into its characters."""
    units = []
    for unit in _UNITS.findall(text):
        if width(unit.lstrip()) <= MAX_LINE_WIDTH:
            units.append(unit)
            continue
        space, characters = unit[: unit.startswith(" ")], regex.findall(r"\X", unit.lstrip())
        parts = [part for whole in characters for part in ([whole] if width(whole) <= MAX_LINE_WIDTH else whole)]
        units += [space + parts[0], *parts[1:]]
    return units


def _balance(units: Sequence[str]) -> list[str]:
    """Fill as few lines as possible, all as wide as each other."""
    fewest = len(_fill(units, MAX_LINE_WIDTH))
    narrow = max(1, width("".join(units)) // max(fewest, 1))
    return next(lines for w in range(narrow, MAX_LINE_WIDTH + 1) if len(lines := _fill(units, w)) <= fewest)


def _fill(units: Sequence[str], longest: int) -> list[str]:
    """Fill lines of at most so many columns; a wider unit has a line of its own."""
    lines: list[str] = []
    for unit in units:
        if lines and width(lines[-1] + unit) <= longest:
            lines[-1] += unit
        else:
            lines.append(unit.lstrip())
    return lines

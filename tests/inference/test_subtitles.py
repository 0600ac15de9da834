"""Subtitles as a strict reader of their formats sees them."""

import html
import os
import random
import re
from collections.abc import Callable

import pytest

from espnet_lole.inference.results import Segment, srt, vtt
from espnet_lole.inference.subtitles import cues

FUZZ = int(os.environ.get("LOLE_FUZZ", "300"))
CLOCK = r"(?:(\d\d+):)?(\d\d):(\d\d)[,.](\d{3})"
WORDS = [
    "so", "extraordinary", "Übergrößenträger", "-->", "<i>", "a & b", "42", "…", "«oui»", "привет", "مرحبا", "नमस्ते",
    "e\u0301t\u0301e\u0301", "https://example.org/a/long/address/without/any/space/in/it", 
    "日本語の文章。", "「はい」、",
    "这是一个没有空格的句子", "สวัสดีครับกำลังทดสอบ", "👩‍👩‍👧‍👦", "🇩🇪", "안녕하세요", "x" * 60, "e" + "\u0301" * 50,
]  # fmt: skip
SPACES = [" ", " ", " ", "", "  ", "\n", "\n\n", "\t", "\r\n", "\u2028", "\u3000", "\u00a0", "\x0b", "\x85"]


def random_segments(rng: random.Random) -> list[Segment]:
    """Make segments in order, of 20 ms to 30 s, with pauses or without, in scripts of all kinds, some blank."""
    segments, time = [], rng.choice([0.0, rng.uniform(0, 8000)])
    for _ in range(rng.randint(0, 6)):
        end = time + rng.choice([0.02, rng.uniform(0.02, 2), rng.uniform(2, 30)])
        words = rng.choice([0, 1, rng.randint(1, 3 if end - time < 0.1 else 40)])
        text = "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(words))
        segments.append(Segment(time, end, text or rng.choice(["", " ", "\n"]), "de"))
        time = end + rng.choice([0.0, rng.uniform(0, 5)])
    return segments


def seconds(hours: str | None, minutes: str, rest: str, thousandths: str) -> float:
    assert int(minutes) < 60 and int(rest) < 60
    return 3600 * int(hours or 0) + 60 * int(minutes) + int(rest) + int(thousandths) / 1000


def read(text: str, form: str) -> list[tuple[float, float, list[str]]]:
    """Read subtitles: a header, then blocks of a number, times and lines, each ended by an empty line."""
    header, numbered = ("WEBVTT\n\n", False) if form == "vtt" else ("", True)
    assert text.startswith(header) and re.fullmatch(r"(?:[^\n]+\n)*", text.replace("\n\n", "\n"))
    blocks = text[len(header) :].split("\n\n")
    assert blocks.pop() == ""
    shown = []
    for number, block in enumerate(blocks, 1):
        lines = block.split("\n")
        assert not numbered or lines.pop(0) == str(number)
        times = re.fullmatch(rf"{CLOCK} --> {CLOCK}", lines.pop(0)).groups()
        shown.append((seconds(*times[:4]), seconds(*times[4:]), lines))
    return shown


def bare(text: str) -> str:
    """Drop white space, and what no subtitle may contain."""
    return re.sub(r"\s", "", text).replace("-->", "->")


@pytest.mark.parametrize(("form", "write"), [("srt", srt), ("vtt", vtt)])
def test_two_lines_of_42_characters_without_blanks_and_overlaps(form: str, write: Callable):
    for number in range(FUZZ):
        segments = random_segments(random.Random(number))
        shown = read(write(segments), form)
        texts = [[html.unescape(line) if form == "vtt" else line for line in lines] for _, _, lines in shown]
        for lines in texts:
            assert 1 <= len(lines) <= 2 and all(line.strip() == line and 1 <= len(line) <= 42 for line in lines), lines
            assert all(line.splitlines() == [line] for line in lines)
        assert not any("-->" in line for _, _, lines in shown for line in lines)
        edges = [edge for start, end, _ in shown for edge in (start, end)]
        assert edges == sorted(edges) and all(start < end for start, end, _ in shown)
        spoken = [s for s in segments if s.text.strip()]
        for start, end, _ in shown:
            assert any(s.start - 1e-3 <= start and end <= s.end + 1e-3 for s in spoken)
        assert bare("".join(line for lines in texts for line in lines)) == bare("".join(s.text for s in spoken))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ja.", ["Ja."]),
        ("Das ist ein Satz, der in eine Zeile nicht passt.", ["Das ist ein Satz, der in\neine Zeile nicht passt."]),
        (
            "这是一个很长的句子，没有空格，所以必须在字之间断开。",
            ["这是一个很长的句子，没有空\n格，所以必须在字之间断开。"],
        ),
        ("two\nlines", ["two lines"]),
    ],
)
def test_lines_are_as_few_and_as_even_as_possible(text, expected):
    assert [shown for _, _, shown in cues(0.0, 4.0, text)] == expected


def test_no_line_begins_with_a_mark_of_punctuation_or_a_combining_character():
    for text in ("すごい。" * 30, "「はい」、" * 30, "กำลังน้ำ" * 30):
        for _, _, shown in cues(0.0, 60.0, text):
            assert not re.match("[。、」ำ้ั]", shown) and not re.search("\n[。、」ำ้ั]", shown)


def test_times_are_proportional_to_the_texts():
    shown = list(cues(10.0, 20.0, "word " * 40))
    assert shown[0][0] == 10.0 and shown[-1][1] == pytest.approx(20.0)
    rates = [len(text.replace("\n", "")) / (end - start) for start, end, text in shown]
    assert max(rates) / min(rates) < 1.1

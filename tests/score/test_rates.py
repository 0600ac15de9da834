"""Counts against an independent edit distance and by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from espnet_lole.score.rates import Counts, Pair, count, detail, read_kaldi, read_rtf


def distance(ref: Sequence[str], hyp: Sequence[str]) -> int:
    """Levenshtein's distance, the full table."""
    table = [[max(i, j) if 0 in (i, j) else 0 for j in range(len(hyp) + 1)] for i in range(len(ref) + 1)]
    for i, r in enumerate(ref, 1):
        for j, h in enumerate(hyp, 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (r != h))
    return table[-1][-1]


@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_equals_an_independent_edit_distance(metric: str) -> None:
    rng = random.Random(0)
    symbols = {"wer": ["ab", "cd", "e", "fgh"], "cer": list("abcd")}[metric]
    glue = {"wer": " ", "cer": ""}[metric]
    pairs = [(rng.choices(symbols, k=rng.randint(1, 12)), rng.choices(symbols, k=rng.randint(0, 12))) for _ in range(200)]
    counts = count([glue.join(ref) for ref, _ in pairs], [glue.join(hyp) for _, hyp in pairs], metric)
    assert counts.sentences == 200
    assert counts.units == sum(len(ref) for ref, _ in pairs) == counts.correct + counts.substitutions + counts.deletions
    assert counts.substitutions + counts.deletions + counts.insertions == sum(distance(*pair) for pair in pairs)
    assert counts.sentence_errors == sum(ref != hyp for ref, hyp in pairs)
    assert counts.correct + counts.substitutions + counts.insertions == sum(len(hyp) for _, hyp in pairs)


def test_by_hand() -> None:
    refs = ["the cat sat", "a b c d", "gone", "", "same"]
    hyps = ["the dog sat down", "a c d", "", "spurious", "same"]
    assert count(refs, hyps, "wer") == Counts(4, 9, 6, 1, 2, 1, 3, 1)
    assert count(refs, hyps, "wer").error == pytest.approx(100 * 4 / 9)
    assert count(refs, hyps, "wer").sentence_error == 75.0


def test_characters_by_hand() -> None:
    assert count(["你好吗"], ["你坏"], "cer") == Counts(1, 3, 1, 1, 1, 0, 1, 0)


def test_nothing_to_score() -> None:
    counts = count(["", ""], ["a", ""], "wer")
    assert counts == Counts(excluded=2)
    with pytest.raises(ValueError, match="at least one reference"):
        _ = counts.error


def test_counts_add_up() -> None:
    both = count(["a b", "c"], ["a", "d"], "wer")
    assert count(["a b"], ["a"], "wer") + count(["c"], ["d"], "wer") == both


def test_detail_marks_the_errors() -> None:
    text = detail(Pair("u1", "de", "ein alter hund", "ein hund bellt"), "wer")
    assert text.startswith("id: u1 (de) C=")
    assert len(text.splitlines()) == 4
    assert detail(Pair("u", "de", "", "x"), "wer").startswith("id: u (de) excluded")


def test_read_kaldi(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("u1 a  b\nu2\nu3 \n", encoding="utf-8")
    assert read_kaldi(path) == {"u1": "a  b", "u2": "", "u3": ""}
    path.write_text("u1 a\nu1 b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="text:2: expected a new utterance id, got 'u1'"):
        read_kaldi(path)
    with pytest.raises(FileNotFoundError, match="found none"):
        read_kaldi(tmp_path / "none")


def test_read_rtf(tmp_path: Path) -> None:
    assert read_rtf(tmp_path / "rtf") is None
    (tmp_path / "rtf").write_text("0.25\n", encoding="utf-8")
    assert read_rtf(tmp_path / "rtf") == 0.25
    (tmp_path / "rtf").write_text("fast", encoding="utf-8")
    with pytest.raises(ValueError, match="expected one number, got 'fast'"):
        read_rtf(tmp_path / "rtf")

"""Counts against an independent edit distance and by hand."""

from __future__ import annotations

import random
from pathlib import Path

import editdistance
import pytest

from espnet_lole.evaluation.rates import Counts, Pair, count, detail, read_kaldi, read_rtf


@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_equals_an_independent_edit_distance(metric: str) -> None:
    rng = random.Random(0)
    symbols = {"wer": ["ab", "cd", "e", "fgh"], "cer": list("abcd")}[metric]
    glue = {"wer": " ", "cer": ""}[metric]
    pairs = [(rng.choices(symbols, k=rng.randint(1, 12)), rng.choices(symbols, k=rng.randint(0, 12))) for _ in range(200)]
    counts = count([glue.join(ref) for ref, _ in pairs], [glue.join(hyp) for _, hyp in pairs], metric)
    assert counts.sentences == 200
    assert counts.units == sum(len(ref) for ref, _ in pairs) == counts.correct + counts.substitutions + counts.deletions
    assert counts.substitutions + counts.deletions + counts.insertions == sum(editdistance.eval(*pair) for pair in pairs)
    assert counts.sentence_errors == sum(ref != hyp for ref, hyp in pairs)
    assert counts.correct + counts.substitutions + counts.insertions == sum(len(hyp) for _, hyp in pairs)


def test_by_hand() -> None:
    refs = ["the cat sat", "a b c d", "gone", "", "same"]
    hyps = ["the dog sat down", "a c d", "", "spurious", "same"]
    assert count(refs, hyps, "wer") == Counts(4, 9, 6, 1, 2, 1, 3, 1)
    assert count(refs, hyps, "wer").error == pytest.approx(100 * 4 / 9)
    assert count(refs, hyps, "wer").sentence_error == 75.0


def test_kinds_of_errors_as_sclite_counts_them() -> None:
    """Counted by hand, by the alignments that sclite's weights make cheapest: 4 a substitution, 3 an insertion or deletion."""
    for ref, hyp, substitutions, deletions, insertions in [
        ("a b c d e", "a x c e", 1, 1, 0),
        ("a b c", "x a b c y", 0, 0, 2),
        ("a b c d", "d", 0, 3, 0),
        ("a a b b", "a b", 0, 2, 0),
        ("the cat is on the mat", "a cat on the red mat", 1, 1, 1),
        ("one two", "three four five", 2, 0, 1),
    ]:
        counts = count([ref], [hyp], "wer")
        assert (counts.substitutions, counts.deletions, counts.insertions) == (substitutions, deletions, insertions), ref


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

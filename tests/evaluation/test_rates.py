"""Counts against an independent edit distance, jiwer's own rates, and by hand."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import editdistance
import jiwer
import pytest

from espnet_lole.evaluation.rates import Counts, Pair, count, make_pairs, read_confusion, read_rtf
from espnet_lole.evaluation.sclite import draw_alignments


def pairs(refs: Sequence[str], hyps: Sequence[str], lang: str = "de") -> list[Pair]:
    return [Pair(f"u{i}", lang, *texts) for i, texts in enumerate(zip(refs, hyps, strict=True), 1)]


@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_counts_equal_an_independent_edit_distance_and_jiwers_rates(metric: str) -> None:
    rng = random.Random(0)
    symbols = {"wer": ["ab", "cd", "e", "fgh"], "cer": list("abcd")}[metric]
    glue = {"wer": " ", "cer": ""}[metric]
    units = [
        (rng.choices(symbols, k=rng.randint(1, 12)), rng.choices(symbols, k=rng.randint(0, 12))) for _ in range(200)
    ]
    refs, hyps = ([glue.join(side) for side in sides] for sides in zip(*units, strict=True))
    counts = count(pairs(refs, hyps), metric)
    assert counts.sentences == 200
    assert counts.units == sum(len(ref) for ref, _ in units) == counts.correct + counts.substitutions + counts.deletions
    assert counts.substitutions + counts.deletions + counts.insertions == sum(
        editdistance.eval(*pair) for pair in units
    )
    assert counts.sentence_errors == sum(ref != hyp for ref, hyp in units)
    assert counts.correct + counts.substitutions + counts.insertions == sum(len(hyp) for _, hyp in units)
    assert counts.error_rate == pytest.approx(100 * getattr(jiwer, metric)(refs, hyps))


def test_counts_by_hand() -> None:
    counts = count(
        pairs(["the cat sat", "a b c d", "gone", "", "same"], ["the dog sat down", "a c d", "", "extra", "same"]), "wer"
    )
    assert counts == Counts(5, 9, 6, 1, 2, 2, 4, 1)
    assert counts.percentages == pytest.approx((600 / 9, 100 / 9, 200 / 9, 200 / 9, 500 / 9, 80))


@pytest.mark.parametrize(
    ("ref", "hyp", "substitutions", "deletions", "insertions"),
    [
        ("a b c d e", "a x c e", 1, 1, 0),
        ("a b c", "x a b c y", 0, 0, 2),
        ("a b c d", "d", 0, 3, 0),
        ("a a b b", "a b", 0, 2, 0),
        ("the cat is on the mat", "a cat on the red mat", 1, 1, 1),
        ("one two", "three four five", 2, 0, 1),
        ("a a b", "b c c", 3, 0, 0),  # three substitutions weigh as much as two deletions and two insertions
        ("b b a b c", "a c d b", 0, 3, 2),  # and so do these, but sclite comes to more errors
        ("a a a c b", "c b d d c", 0, 3, 3),
        ("b c b b a a b", "a d a c d d b c", 3, 2, 3),  # neither the fewest nor the most errors of the least weight
        ("a a a b b", "b b c d d", 0, 3, 3),  # the least weight has more errors than five substitutions
        ("a a c a b c b b a", "b b b a a d a d d", 3, 3, 3),
    ],
)
def test_errors_are_divided_as_by_sclite(
    ref: str, hyp: str, substitutions: int, deletions: int, insertions: int
) -> None:
    """As sclite 2.10 prints them, which weights a substitution 4 and another error 3."""
    counts = count(pairs([ref], [hyp]), "wer")
    assert (counts.substitutions, counts.deletions, counts.insertions) == (substitutions, deletions, insertions)


def test_a_space_is_a_character_only_in_languages_with_spaces() -> None:
    assert count(pairs(["你 好吗"], ["你坏"], "zh"), "cer") == Counts(1, 3, 1, 1, 1, 0, 1, 0)
    assert count(pairs(["a b"], ["ab"], "de"), "cer") == Counts(1, 3, 2, 0, 1, 0, 1, 0)


def test_counts_add_up() -> None:
    refs, hyps = ["a b", "c", ""], ["a", "d", ""]
    parts = count(pairs(refs[:1], hyps[:1]), "wer") + count(pairs(refs[1:], hyps[1:]), "wer")
    assert parts == count(pairs(refs, hyps), "wer")


def test_alignments_are_drawn_under_the_utterance() -> None:
    first, second = draw_alignments(pairs(["ein alter hund", "gut"], ["ein hund bellt", "gut"]), "wer").split(
        "=== u2 ==="
    )
    title, _, ref, hyp, marks = first.splitlines()[:5]
    assert title == "=== u1 ===" and Counter(marks.split()) in ({"D": 1, "I": 1}, {"S": 2})
    assert ref.replace("*", "").split() == ["REF:", "ein", "alter", "hund"]
    assert hyp.replace("*", "").split() == ["HYP:", "ein", "hund", "bellt"]
    assert second.split() == ["REF:", "gut", "HYP:", "gut"]


def test_pairs_are_normalised_by_the_language_of_the_reference() -> None:
    made = make_pairs({"a": "Colour!", "b": "Colour!"}, {"b": "COLOR", "a": "COLOR"}, {"a": "en", "b": "de"}, Path("x"))
    assert made == [Pair("a", "en", "color", "color"), Pair("b", "de", "colour", "color")]


@pytest.mark.parametrize(
    ("refs", "hyps", "message"),
    [
        ({"a": "x", "b": "y"}, {"a": "x"}, "f: 1 of 2 utterances have no hypothesis: b"),
        ({"a": "x"}, {"a": "x", "c": "y"}, "f: 1 of 2 utterances have no reference: c"),
        ({"a": "x", "d": "y"}, {"a": "x", "d": "y"}, "f: 1 of 2 utterances have no language: d"),
        ({"a": "x", "b": "..."}, {"a": "x", "b": "y"}, "f: all references of fr are empty after normalisation"),
        ({}, {}, "f: nothing to score"),
    ],
)
def test_pairs_must_be_complete(refs: dict[str, str], hyps: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pairs(refs, hyps, {"a": "de", "b": "fr"}, Path("f"))


def test_confusion_counts_predicted_languages_by_true_language(tmp_path: Path) -> None:
    (tmp_path / "utt2lang").write_text("a de\nb de\nc en\n")
    (tmp_path / "lang").write_text("c en\na de\nb en\n")
    assert read_confusion(tmp_path / "lang", tmp_path / "utt2lang") == {"de": {"de": 1, "en": 1}, "en": {"en": 1}}


def test_a_real_time_factor_is_one_number(tmp_path: Path) -> None:
    assert read_rtf(tmp_path / "rtf") is None
    (tmp_path / "rtf").write_text("0.25\n", encoding="utf-8")
    assert read_rtf(tmp_path / "rtf") == 0.25
    (tmp_path / "rtf").write_text("fast", encoding="utf-8")
    with pytest.raises(ValueError, match="expected one number, got 'fast'"):
        read_rtf(tmp_path / "rtf")

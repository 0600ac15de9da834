"""Hypotheses are scored with the system and the test sets that they come from, or refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from espnet_lole.data.kaldi import write_table
from espnet_lole.evaluation.decodings import (
    DECODING,
    TRAINING,
    check_decoding,
    describe_decoding,
    seeds_of_other_trainings,
    write_decoding,
)

SETS = ("test_de", "test_tr")


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make test sets, a system, and the record of its decoding."""
    monkeypatch.chdir(tmp_path)
    for name in SETS:
        Path("raw", name).mkdir(parents=True)
        write_table(Path("raw", name, "wav.scp"), {"a": "a.ark:1", "b": "a.ark:2"})
        write_table(Path("raw", name, "utt2lang"), {"a": "de", "b": "de"})
    Path("exp").mkdir()
    Path("exp/weights.pth").write_bytes(b"weights")
    record = describe_decoding([Path("exp/weights.pth")], [Path("raw", name) for name in SETS])
    write_decoding(Path("exp/decode"), record)


def check() -> None:
    check_decoding(Path("exp/decode"), Path("raw"), SETS)


def rewrite() -> None:
    """Write the same content with another date."""
    Path("exp/weights.pth").write_bytes(b"weights")
    os.utime("exp/weights.pth", (1, 1))
    write_table("raw/test_de/text", {"a": "references may change"})


@pytest.mark.parametrize("same", [lambda: None, rewrite])
def test_a_decoding_of_the_present_system_and_sets_is_scored(same: Callable[[], None]) -> None:
    same()
    check()


def test_other_seeds_are_of_other_trainings_if_more_than_the_seed_differs() -> None:
    plain = {"seed": 0, "experts": {"de": "1"}, "train data": {"utterances": 3}}
    others = {
        "1": {"seed": 1, "experts": {"de": "2"}},
        "2": {"seed": 2, "train data": {"utterances": 4}},
        "x": {"a": 1},
        "0.1": {"train data": {"utterances": 5}},  # moved aside by --resume false
    }
    for seed, changes in {"0": {}, **others}.items():
        Path(f"exp/student_seed{seed}").mkdir()
        Path(f"exp/student_seed{seed}", TRAINING).write_text(json.dumps(plain | changes))
    expected = {"2": ["train data.utterances: 3, now 4"]}
    assert seeds_of_other_trainings(Path("exp/student_seed0")) == expected
    assert seeds_of_other_trainings(Path("exp/student_seedx")) == seeds_of_other_trainings(Path("exp/none_seed0")) == {}


CHANGES: dict[str, tuple[Callable[[], object], str]] = {
    "other weights": (lambda: Path("exp/weights.pth").write_bytes(b"other"), "before exp/weights.pth got its present"),
    "no weights": (lambda: Path("exp/weights.pth").unlink(), "before exp/weights.pth got its present content"),
    "another set": (
        lambda: write_table("raw/test_tr/wav.scp", {"a": "a.ark:1"}),
        "other data: test_tr.utterances: 2, now 1: decode",
    ),
    "other languages": (
        lambda: write_table("raw/test_de/utt2lang", {"a": "tr", "b": "de"}),
        "other data: test_de.lang: .*, now ",
    ),
    "no set": (lambda: shutil.rmtree("raw/test_de"), "expected a file raw/test_de/wav.scp"),
    "no record": (lambda: Path("exp/decode", DECODING).unlink(), "is not there, so that it is unknown"),
    "broken record": (lambda: Path("exp/decode", DECODING).write_text("[]"), "decoding.json is broken"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_decoding_of_another_system_or_set_is_refused(change: str) -> None:
    CHANGES[change][0]()
    with pytest.raises((ValueError, FileNotFoundError), match=CHANGES[change][1]):
        check()

"""Tables and directories in Kaldi's form."""

from pathlib import Path

import pytest

from espnet_lole.data.kaldi import KaldiDir, Segment, atomic_dir, read_segments, read_table, write_table


def test_table_round_trip_is_sorted_and_keeps_text(tmp_path: Path) -> None:
    table = {"b": "zwei  Wörter", "a": "一 二", "B": ""}
    write_table(tmp_path / "text", table)
    assert (tmp_path / "text").read_text(encoding="utf-8") == "B\na 一 二\nb zwei  Wörter\n"
    assert read_table(tmp_path / "text") == table


def test_table_takes_tabs_carriage_returns_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\tx y\r\n\n b z\n")
    assert read_table(tmp_path / "text") == {"a": "x y", "b": "z"}


def test_duplicate_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a x\nb y\na z\n")
    with pytest.raises(ValueError, match=r"text:3: expected one line per id, got 'a' again \(line 1\)"):
        read_table(tmp_path / "text")


def test_other_encoding_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("a x\nb ü\n".encode("latin-1"))
    with pytest.raises(ValueError, match="text:2: expected UTF-8"):
        read_table(tmp_path / "text")


@pytest.mark.parametrize("line", ["a rec 0", "a rec zero 1", "a rec 0 1 2", "a rec 0 nan", "a rec 0 inf"])
def test_malformed_segment_names_file_and_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "segments").write_text(f"b rec 0 -1\n{line}\n")
    with pytest.raises(ValueError, match="segments:2: expected 'utterance recording start end'"):
        read_segments(tmp_path / "segments")


def test_missing_directory_and_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a Kaldi directory at"):
        KaldiDir.read(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"expected a file .*wav\.scp"):
        KaldiDir.read(tmp_path)


def test_every_problem_is_told(tmp_path: Path) -> None:
    segments = {"a": Segment("r", 0, 1), "b": Segment("r", 0, 1), "c": Segment("q", 0, 1), "e": Segment("r", 1, 2)}
    text = {"a": "x", "b": "\u3000", "c": "x", "d": "x"}
    kept, skipped = KaldiDir(tmp_path, {"r": "r.wav"}, text, {}, {}, segments).usable()
    assert kept == ["a"]
    assert skipped == {"b": "empty transcript", "c": "not in wav.scp", "d": "not in segments", "e": "not in text"}


def test_failure_leaves_the_old_directory_and_nothing_else(tmp_path: Path) -> None:
    for text, fails in (("old", False), ("new", True), ("newer", False)):
        try:
            with atomic_dir(tmp_path / "d") as folder:
                (folder / "wav.scp").write_text(text)
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert (tmp_path / "d/wav.scp").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d/wav.scp").read_text() == "newer"


def test_a_directory_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="new, empty or a Kaldi directory"), atomic_dir(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").exists()

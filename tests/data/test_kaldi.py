"""Tables and directories are read completely, or refused with file and line."""

from pathlib import Path

import pytest

from espnet_lole.data.kaldi import (
    KaldiDir,
    KaldiSegment,
    read_lengths,
    read_segments,
    read_table,
    read_transcripts,
    write_table,
)


def test_a_written_table_is_sorted_and_reads_as_it_was(tmp_path: Path) -> None:
    table = {"b": "zwei  Wörter", "a": "一 二", "B": ""}
    write_table(tmp_path / "text", table)
    assert (tmp_path / "text").read_text(encoding="utf-8") == "B\na 一 二\nb zwei  Wörter\n"
    assert read_table(tmp_path / "text") == table


def test_tabs_carriage_returns_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\tx y\r\n\n b z\n")
    assert read_table(tmp_path / "text") == {"a": "x y", "b": "z"}


def test_a_missing_value_is_empty(tmp_path: Path) -> None:
    (tmp_path / "utt2lang").write_text("a de\nb\nc \n")
    assert read_table(tmp_path / "utt2lang") == {"a": "de", "b": "", "c": ""}


def test_transcripts_are_named_by_paths_that_end_at_a_tab(tmp_path: Path) -> None:
    (tmp_path / "hyp").write_text("x/my talk.wav\teins zwei\nd.1/b.2\tdrei\nempty file.FLAC\t\nc.1 vier\tfünf\n")
    texts = ["eins zwei", "drei", "", "vier\tfünf"]
    with pytest.raises(
        ValueError, match="hyp:4: expected a tab after an id or the name of an audio file, got one after 'c.1 vier'"
    ):
        read_transcripts(tmp_path / "hyp")
    (tmp_path / "hyp").write_text("x/my talk.wav\teins zwei\nd.1/b.2\tdrei\nempty file.FLAC\t\nc.1 vier\n")
    texts[-1] = "vier"
    names = ["x/my talk.wav", "d.1/b.2", "empty file.FLAC", "c.1"]
    assert read_transcripts(tmp_path / "hyp") == dict(zip(names, texts, strict=True))
    names = ["my talk", "b.2", "empty file", "c.1"]
    assert read_transcripts(tmp_path / "hyp", by_name=True) == dict(zip(names, texts, strict=True))
    (tmp_path / "hyp").write_text("x/a.wav\teins\ny/a.flac\tzwei\n")
    with pytest.raises(ValueError, match=r"hyp:2: expected one line per id, got 'a' again \(line 1\)"):
        read_transcripts(tmp_path / "hyp", by_name=True)


SPACES = ["\u00a0", "\u3000", "\u0085", "\u2028", "\v", "\x1c", "\x00", "\ufeff"]


@pytest.mark.parametrize("space", SPACES, ids=ascii)
def test_an_id_that_some_reader_would_split_is_refused_with_file_and_line(tmp_path: Path, space: str) -> None:
    (tmp_path / "text").write_text(f"a x{space}y\nb{space}1 x\n", encoding="utf-8")
    message = rf"text:2: expected an id without spaces and control characters, got .* with U\+{ord(space):04X}; rename"
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "text")
    (tmp_path / "text").write_text(f"a x{space}y\n", encoding="utf-8")
    assert read_table(tmp_path / "text") == {"a": f"x{space}y"}
    with pytest.raises(ValueError, match="text:1: expected an id"):
        read_table(tmp_path / "text", values_are_ids=True)
    with pytest.raises(ValueError, match="expected an id"):
        write_table(tmp_path / "text", {f"b{space}1": "x"})


@pytest.mark.parametrize("name", ["wav.scp", "text", "utt2spk", "utt2lang", "segments"])
def test_every_table_of_a_directory_is_checked(tmp_path: Path, name: str) -> None:
    KaldiDir(tmp_path, {"a": "a.wav"}, {"a": "x"}, {"a": "s"}, {"a": "de"}, {"a": KaldiSegment("a", 0, 1)}).write(
        tmp_path
    )
    KaldiDir.read(tmp_path)
    with (tmp_path / name).open("a", encoding="utf-8") as table:
        table.write("b\u00a01 0 1\n")
    with pytest.raises(ValueError, match=f"{name}:2: expected an id"):
        KaldiDir.read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_wide_encodings_are_refused_with_file_and_line(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "text").write_text("a x\nb y\n", encoding=encoding)
    with pytest.raises(ValueError, match="text:1: expected "):
        read_table(tmp_path / "text")


def test_lines_that_end_in_carriage_returns_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a x\rb y\r")
    with pytest.raises(ValueError, match="text:1: expected one line, got a carriage return inside it"):
        read_table(tmp_path / "text")


def test_a_line_break_in_a_value_is_written_as_a_space(tmp_path: Path) -> None:
    write_table(tmp_path / "text", {"a": "eins \r\n zwei\n\ndrei\n"})
    assert read_table(tmp_path / "text") == {"a": "eins zwei drei"}


def test_a_repeated_id_is_refused_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a x\nb y\na z\n")
    with pytest.raises(ValueError, match=r"text:3: expected one line per id, got 'a' again \(line 1\)"):
        read_table(tmp_path / "text")


def test_another_encoding_is_refused_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("a x\nb ü\n".encode("latin-1"))
    with pytest.raises(ValueError, match="text:2: expected UTF-8"):
        read_table(tmp_path / "text")


@pytest.mark.parametrize("length", ["", "1.5", "-1", "1 2", "many"])
def test_a_malformed_length_is_refused_with_file_and_line(tmp_path: Path, length: str) -> None:
    (tmp_path / "utt2num_samples").write_text(f"a 1600\nb {length}\n")
    with pytest.raises(ValueError, match=f"utt2num_samples:2: expected a number of samples, got '{length}'"):
        read_lengths(tmp_path / "utt2num_samples")
    write_table(tmp_path / "utt2num_samples", {"a": 1600, "b": 0})
    assert read_lengths(tmp_path / "utt2num_samples") == {"a": 1600, "b": 0}


@pytest.mark.parametrize("line", ["a rec 0", "a rec zero 1", "a rec 0 1 2", "a rec 0 nan", "a rec 0 inf"])
def test_a_malformed_segment_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "segments").write_text(f"b rec 0 -1\n{line}\n")
    with pytest.raises(ValueError, match="segments:2: expected 'utterance recording start end'"):
        read_segments(tmp_path / "segments")


def test_a_missing_directory_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a Kaldi directory at"):
        KaldiDir.read(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"expected a file .*wav\.scp"):
        KaldiDir.read(tmp_path)


def test_every_problem_of_an_utterance_is_named(tmp_path: Path) -> None:
    segments = {utt: KaldiSegment("q" if utt == "c" else "r", 0, 1) for utt in "abce"}
    text = {"a": "x", "b": "\u3000\u200b", "c": "x", "d": "x"}
    kaldi = KaldiDir(tmp_path, {"r": "r.wav"}, text, segments=segments)
    problems = ["empty transcript", "not in wav.scp", "not in segments", "not in text"]
    assert [kaldi.problem(utt) for utt in kaldi.utterances()] == [None, *problems]


def test_a_subset_of_all_utterances_is_the_directory_itself(tmp_path: Path) -> None:
    segments = {"a": KaldiSegment("r", 0, 1), "b": KaldiSegment("r", 1, 2), "c": KaldiSegment("q", 0, 1)}
    text, speakers, langs = ({utt: name + utt for utt in segments} for name in ("text", "spk", "lang"))
    kaldi = KaldiDir(tmp_path, {"r": "r.wav", "q": "q.wav"}, text, speakers, langs, segments, {"a": 1.1})
    assert kaldi.subset("abc") == kaldi
    part = kaldi.subset("b")
    assert part.wav == {"r": "r.wav"} and part.segments == {"b": segments["b"]} and part.utt2speed == {}
    assert part.by_language() == {"langb": ["b"]}


def test_what_a_directory_writes_it_reads(tmp_path: Path) -> None:
    segments = {"a": KaldiSegment("r", 0.0, 1.5), "b": KaldiSegment("r", 1.0, -1.0)}
    text = {"a": "x y", "b": ""}
    kaldi = KaldiDir(tmp_path, {"r": "cat r.wav |"}, text, {"a": "s"}, {"a": "de"}, segments, {"b": 0.9})
    kaldi.write(tmp_path)
    assert KaldiDir.read(tmp_path) == kaldi

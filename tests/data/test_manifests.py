"""Manifests are read as other programs read them, or refused with file and line; a generated family is compared."""

import csv
import io
import json
import os
import random
import re
from pathlib import Path

import pandas as pd
import pytest

from espnet_lole.data.kaldi import KaldiDir, KaldiSegment
from espnet_lole.data.lhotse import read_manifest
from espnet_lole.data.manifests import Row, to_kaldi

EXAMPLES = int(os.environ.get("LOLE_FUZZ", 300))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> Path:
    """Write a manifest."""
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return Path(name)


def texts(name: str, content: str | bytes) -> list[str]:
    return [row.text for row in read_manifest(write(name, content))]


def test_all_columns_are_read_under_any_of_their_names() -> None:
    content = (
        "Speaker_ID;File_Name;offset;DURATION;sentence;locale;set;utt_id;age\n7;a.wav;1.5;2;Ja, nein;de;valid;u1;3\n"
    )
    expected = Row("a.csv:2", "a.wav", "Ja, nein", "de", "dev", "7", "u1", 1.5, 3.5)
    assert read_manifest(write("a.csv", content)) == [expected]
    values = {"audio": {"path": "a.wav", "bytes": None}, "text": "Ja, nein", "lang": "de", "split": "validation"}
    values |= {"speaker": 7, "id": "u1", "start": 1.5, "end": "3.5"}
    assert read_manifest(write("a.jsonl", json.dumps(values))) == [expected._replace(where="a.jsonl:1")]


def test_a_duration_without_a_start_is_that_of_the_file() -> None:
    (row,) = read_manifest(write("a.jsonl", '{"audio_filepath": "a.wav", "text": "ja", "duration": 3.2}'))
    assert (row.start, row.end) == (0.0, -1.0)


def test_line_breaks_in_a_text_become_one_space() -> None:
    assert texts("a.csv", 'path,text\na.wav,"two\r\n\r\n lines"\n') == ["two lines"]
    assert texts("a.jsonl", '{"path": "a", "text": " two\\u2028lines\\n"}') == ["two lines"]


def test_quotes_of_common_voice_stay_and_those_of_other_programs_go() -> None:
    """Its TSV has no quoting, so that a single quote is a character; pandas doubles those in a cell that it quotes."""
    assert texts("a.tsv", 'path\tsentence\na\t"Ja\nb\t"Ja", sagte er.\nc\t"Nein"\n') == [
        '"Ja',
        '"Ja", sagte er.',
        '"Nein"',
    ]
    frame = pd.DataFrame({"path": ["a", "b"], "text": ['er sagt "ja"', "nein"]})
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        assert texts("a.tsv", frame.to_csv(sep="\t", index=False, quoting=quoting)) == list(frame["text"])


MISTAKES = {
    "path,text\na.wav,ja, nein\n": "a.csv:2: expected 2 columns as in the header, got 3; put a text that contains ','",
    "path,text\na.wav\n": "a.csv:2: expected 2 columns as in the header, got 1",
    'path,text\na,ja\nb,"nein\n': "a.csv:3: not a row of a table: unexpected end of data",
    'path,text\na,"ja"x\n': "a.csv:2: not a row of a table",
    "path,text,text\na,b,c\n": "a.csv:1: expected columns of different names, got text twice",
    "path,words\na,b\n": "a.csv:2: expected a column for text: text sentence transcript transcription, got the columns",
    "path,sentence,transcript\na,b,c\n": "a.csv:2: sentence and transcript may both be the text; name one of them",
    "path,file,text\na,b,c\n": "a.csv:2: path and file may both be the audio",
    "path,text\na,ja\n\na,ja\n": r"a.csv:4: expected each audio once, got 'a' again \(a.csv:2\)",
    "path,text\n,ja\n": "a.csv:2: expected the path of an audio file, got none",
    "path,text\nrm x |,ja\n": "a.csv:2: expected an audio file, got 'rm x |', which is a command",
    "path,text\na.ark:12,ja\n": "a.csv:2: expected an audio file, got 'a.ark:12'",
    "path,text\na\x00b,ja\n": "a.csv:2: (expected no control characters in audio|not a row of a table)",
    "path,text\na,j\x07a\n": "a.csv:2: expected no control characters in text",
    "path,text,start,end\na,ja,2,1\n": "a.csv:2: expected 0 <= start < end in seconds, got 2 and 1",
    "path,text,start\na,ja,-1\n": "a.csv:2: expected start in seconds from 0, got '-1'",
    "path,text,end\na,ja,nan\n": "a.csv:2: expected end in seconds from 0, got 'nan'",
    "path,text,start\na,ja,0:12\n": "a.csv:2: expected start in seconds from 0, got '0:12'",
    "path,text,split\na,ja,holdout\n": "a.csv:2: expected split to be train, dev, test, got 'holdout'",
    "path,text\n": "a.csv: expected utterances, got none",
    "": "a.csv: expected utterances, got none",
    '{"path": "a", "text": "ja"}\n[1]': "a.jsonl:2: expected one JSON object a line",
    "[\n": "a.jsonl:1: expected one JSON object a line",
    '{"path": "a", "text": 5}': "a.jsonl:1: expected text to be a string, got 5",
    '{"path": "a", "text": "\\ud800"}': "a.jsonl:1: expected Unicode in text",
    '{"path": "a", "text": "ja", "start": true}': "a.jsonl:1: expected start in seconds",
    '{"path": "a", "text": "ja", "end": Infinity}': "a.jsonl:1: expected end in seconds",
}


@pytest.mark.parametrize("content", MISTAKES)
def test_a_mistake_in_a_manifest_is_named_with_its_line(content: str) -> None:
    name = MISTAKES[content].partition(":")[0]
    with pytest.raises(ValueError, match=f"^{MISTAKES[content]}"):
        read_manifest(write(name, content))


def test_files_that_are_not_text_are_named() -> None:
    with pytest.raises(ValueError, match="^a.csv:2: expected UTF-8, got b'\\\\xfc"):
        read_manifest(write("a.csv", "path,text\na,für\n".encode("latin-1")))
    with pytest.raises(ValueError, match="^a.jsonl.gz: expected a gzip file"):
        read_manifest(write("a.jsonl.gz", "{}"))
    with pytest.raises(FileNotFoundError, match="expected a manifest at none.csv"):
        read_manifest(Path("none.csv"))


def kaldi(content: str, *folders: Path) -> KaldiDir:
    path = write("m/a.csv", content)
    return to_kaldi(read_manifest(path), path, folders)


def test_paths_start_at_the_manifest_its_clips_or_a_folder_that_is_named() -> None:
    for place in ("m/here.wav", "m/clips/c.mp3", "m/both.wav", "other/both.wav", "other/o.wav"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).touch()
    content = "path,text\nhere.wav,x\nc.mp3,x\nboth.wav,x\no.wav,x\n/abs.wav,x\ngone.wav,x\n"
    names = {Path(wav).stem: wav for wav in kaldi(content, Path("other")).wav.values()}
    expected = {"here": "m/here.wav", "c": "m/clips/c.mp3", "both": "other/both.wav", "o": "other/o.wav"}
    assert names == {k: os.path.abspath(v) for k, v in expected.items()} | {"abs": "/abs.wav", "gone": "gone.wav"}


def test_ids_come_from_the_manifest_or_the_files_and_are_never_two_utterances() -> None:
    Path("m").mkdir()
    assert list(kaldi("path,text,id\nx/a.wav,x,u 1\nx/b.wav,x,u2\n").text) == ["u%201", "u2"]
    assert list(kaldi("path,text,id\nx/y/a.wav,x,1\nx/b.1.wav,x,1\n").text) == ["y-a", "b.1"]
    made = kaldi("path,text,start,end,speaker\na.wav,x,0,1.5,s 1\na.wav,y,2,,\nb.wav,z,,,\n")
    assert made.segments == {
        "a-0000000-0001500": KaldiSegment("a", 0.0, 1.5),
        "a-0002000-end": KaldiSegment("a", 2.0, -1.0),
        "b": KaldiSegment("b", 0.0, -1.0),
    }
    assert made.wav == {"a": "a.wav", "b": "b.wav"} and made.utt2spk == {"a-0000000-0001500": "s%201"}
    for clash in ("a.wav,x\na.mp3,y\n", "a/b.wav,x\na-b.wav,y\n"):
        with pytest.raises(ValueError, match="a.csv:3: expected utterances with different ids, got 'a(-b)?' again"):
            kaldi("path,text\n" + clash)


CELLS = [
    "a",
    "ä ß",
    '"quoted"',
    "it's",
    ";",
    "\t",
    "ein\nzwei",
    " x ",
    "سلام",
    "中文",
    "👩‍👩‍👧",
    "e\u0301",
    "\u00a0",
    "''",
]
CELLS += ['""', 'a"b', "\ufeff", "İ", "=1+1", "NULL", "nan", "0", "#", ",", " "]
DAMAGES = ["none"] * 6 + ["short row", "long row", "no column", "twice", "negative", "backwards", "bytes", "no path"]


def random_rows(chance: random.Random) -> list[dict[str, str]]:
    """Make rows of odd cells; each has its own path."""
    rows = []
    for number in range(chance.randint(1, 6)):
        start = chance.choice(["", "0", "1.5", " 2 ", "1e1"])
        row = {"path": f"{chance.choice(['', 'x/', 'x y/', './'])}{chance.choice(['a', 'ü', '中', 'a b'])}{number}.wav"}
        row["text"] = "".join(chance.choices(CELLS, k=chance.randint(0, 5)))
        row |= {"language": chance.choice(["de", "tr"]), "speaker": chance.choice(["", "s 1", "ş"]), "start": start}
        row["end"] = chance.choice(["", str(float(start or 0) + 1)])
        rows.append(row)
    return rows


def damage(rows: list[dict[str, str]], kind: str, chance: random.Random) -> int:
    """Damage a row, and return its index."""
    index = chance.randrange(len(rows))
    changes = {"negative": {"start": "-0.5"}, "backwards": {"start": "3", "end": "1"}, "no path": {"path": " "}}
    rows[index] |= changes.get(kind, {})
    if kind == "twice":
        rows.append(dict(rows[index]))
        index = len(rows) - 1
    return index


def serialize(rows: list[dict[str, str]], kind: str, index: int, chance: random.Random) -> tuple[str, str, list, int]:
    """Write rows by the csv or json module; return name, content, the rows by the same module, and the damaged line."""
    names = list(rows[0])
    chance.shuffle(names)
    if kind == "no column":
        names.remove(chance.choice(["path", "text"]))
    if chance.random() < 0.3:
        lines = [json.dumps({name: row[name] for name in names}, ensure_ascii=chance.random() < 0.5) for row in rows]
        if kind in ("short row", "long row"):
            lines[index] = lines[index][:-1] if kind == "short row" else lines[index] + "}"
        blank = chance.random() < 0.3
        content = ("\n\n" if blank else "\n").join(lines)
        good = [json.loads(line) for line in lines] if kind in ("none", "bytes") else []
        return "a.jsonl", content, good, (2 * index if blank else index) + 1
    options = {"delimiter": chance.choice(",;\t"), "lineterminator": chance.choice(["\n", "\r\n"])}
    options["quoting"] = chance.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    parts = [io.StringIO(newline="")]
    csv.writer(parts[0], **options).writerow(names)
    for row in rows:
        parts.append(io.StringIO(newline=""))
        values = [row[name] for name in names]
        if len(parts) == index + 2 and kind in ("short row", "long row"):
            values = values[1:] if kind == "short row" else [*values, "more"]
        csv.writer(parts[-1], **options).writerow(values)
    content = "".join(part.getvalue() for part in parts)
    line = "".join(part.getvalue() for part in parts[: index + 1]).count("\n") + 1
    # the separator's own file name: a TSV whose header has no quotes is read without quoting, as Common Voice's
    tab = options["delimiter"] == "\t" and options["quoting"] != csv.QUOTE_MINIMAL
    good = list(csv.DictReader(io.StringIO(content, newline=""), delimiter=options["delimiter"]))
    return "a.tsv" if tab else "a.csv", content, good, line


def as_expected(cells: dict[str, str], row: Row) -> bool:
    """Compare a row with its cells, as the csv or json module has read them."""
    start, end = (float(cells[name]) if cells[name].strip() else None for name in ("start", "end"))
    return (
        row.audio == cells["path"].strip()
        and row.text == " ".join(cells["text"].split())
        and (row.language, row.speaker) == (cells["language"].strip(), cells["speaker"].strip())
        and (row.start, row.end) == (start or 0.0, -1.0 if end is None else end)
    )


def survives(rows: list[Row], path: Path) -> bool:
    """Compare the rows with the tables of a Kaldi directory that were written and read again."""
    made, folder = to_kaldi(rows, path), Path("kaldi")
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    made.write(folder)
    read = KaldiDir.read(folder)
    spoken = [
        (read.wav[read.recording(utt)], read.text[utt], *(read.segments or {}).get(utt, (0, 0.0, -1.0))[1:])
        for utt in read.utterances()
    ]
    return sorted(spoken) == sorted((row.audio, row.text, row.start, row.end) for row in rows)


def outcome(seed: int) -> str:
    """Read a generated manifest: right, a clear error, or wrong."""
    chance = random.Random(seed)
    rows, kind = random_rows(chance), chance.choice(DAMAGES)
    index = damage(rows, kind, chance)
    name, content, good, line = serialize(rows, kind, index, chance)
    raw = content.encode()
    if kind == "bytes":
        start = sum(len(part) for part in raw.splitlines(keepends=True)[: line - 1])
        raw = raw[:start] + b"\xff" + raw[start:]
    path = write(name, (b"\xef\xbb\xbf" if chance.random() < 0.3 else b"") + raw)
    try:
        read = read_manifest(path)
    except ValueError as error:
        where = re.match(rf"{re.escape(name)}:(\d+): ", str(error))
        plain_tabs = name == "a.csv" and "\t" in content.partition("\n")[0] and '"' in content
        if where and (plain_tabs or (kind != "none" and (kind == "no column" or int(where[1]) == line))):
            return "clear error"
        return f"wrong error ({kind}, line {line}): {error}"
    same = len(read) == len(good) == len(rows) and all(map(as_expected, good, read)) and survives(read, path)
    return "right" if kind == "none" and same else f"silently wrong ({kind}): {content!r} {read}"


def test_generated_manifests_are_read_as_csv_and_json_read_them_or_refused_with_the_line() -> None:
    outcomes = [outcome(seed) for seed in range(EXAMPLES)]
    wrong = [(seed, text) for seed, text in enumerate(outcomes) if text not in ("right", "clear error")]
    assert not wrong, (len(wrong), wrong[:3])
    assert min(outcomes.count("right"), outcomes.count("clear error")) > 0.2 * EXAMPLES
    print({text: outcomes.count(text) for text in set(outcomes)})

"""The human corpus from clones: whole speakers in a set, no sentence in two, one voice for training only."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from human.prepare import DEV, SAMPLE, TEST, main


@pytest.fixture
def clones(tmp_path) -> Path:
    """Write clones with 100 recordings by 33 speakers in German and Chinese, and 20 of one German voice."""
    for folder in ("de", "zh-CN"):
        clips = tmp_path / "clones" / SAMPLE / folder / "clips"
        clips.mkdir(parents=True)
        rows = [["client_id", "path", "sentence"]]
        for i in range(100):
            soundfile.write(clips / f"{i}.wav", np.zeros(16000), 16000)
            rows.append([f"{i // 3:064x}"[::-1], f"{i}.wav", f'Satz "{i % 95}" hier.'])  # five sentences twice
        text = "".join("\t".join(row) + "\n" for row in rows)
        (clips.parent / "validated.tsv").write_text(text)
    verified = tmp_path / "clones" / "dataset-voice-kerstin" / "verified"
    verified.mkdir(parents=True)
    lines = []
    for i in range(20):
        soundfile.write(verified / f"k{i}.flac", np.zeros(60 * 8000), 8000)
        lines.append(f"k{i}|SATZ {i}, hier!\n" if i < 5 else f"k{i}|Nur hier {i}.\n")
    (verified.parent / "metadata.csv").write_text("".join(lines) + "missing|Ohne Ton.\n")
    return tmp_path / "clones"


def read(clones: Path, *options: str) -> list[dict[str, str]]:
    output = clones.parent / "human.csv"
    main(["--clones", str(clones), "--output", str(output), *options])
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def test_sets_share_neither_speakers_nor_sentences(clones):
    rows = read(clones, "--langs", "de", "zh")
    for lang in ("de", "zh"):
        sets = {split: [r for r in rows if r["language"] == lang and r["split"] == split] for split in ("dev", "test")}
        sets["train"] = [r for r in rows if r["language"] == lang and r["split"] == "train"]
        for one in sets:
            for other in set(sets) - {one}:
                for column in ("speaker", "text"):
                    assert not {r[column] for r in sets[one]} & {r[column] for r in sets[other]}
        assert DEV - 3 <= len(sets["dev"]) <= DEV and TEST - 4 <= len(sets["test"]) <= TEST
    assert all(Path(r["path"]).is_file() for r in rows)


def test_one_voice_trains_up_to_its_minutes_without_sentences_of_the_tests(clones):
    rows = read(clones, "--langs", "de", "--max_minutes", "8")
    spoken = [r for r in rows if r["speaker"] == "dataset-voice-kerstin"]
    assert len(spoken) == 8 and {r["split"] for r in spoken} == {"train"}
    tested = {"".join(filter(str.isalnum, r["text"].casefold())) for r in rows if r["split"] != "train"}
    assert not tested & {"".join(filter(str.isalnum, r["text"].casefold())) for r in spoken}


def test_a_missing_clone_is_named(clones):
    with pytest.raises(SystemExit, match="rsample.*fr/validated.tsv.*--clones"):
        main(["--clones", str(clones), "--output", str(clones / "x.csv"), "--langs", "fr"])


def test_a_table_is_replaced_only_as_it_was_made(clones):
    read(clones, "--langs", "de", "zh")
    assert {row["language"] for row in read(clones, "--langs", "de")} == {"de"}
    output = clones.parent / "human.csv"
    for changed in (output.read_text().replace("hier.", "dort.", 1), "path,text,language\na.wav,Ja.,de\n"):
        output.write_text(changed)
        with pytest.raises(SystemExit, match="human.csv exists already"):
            read(clones, "--langs", "de")
        assert output.read_text() == changed

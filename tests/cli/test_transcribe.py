"""`lole transcribe`: texts, JSON, subtitles and standard input."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from systems import CODES

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main


@pytest.fixture
def audio(tmp_path) -> list[str]:
    """Two files of noise, the second with a silence in its middle."""
    random = np.random.default_rng(0)
    noise = [random.normal(0, 0.1, size).astype(np.float32) for size in (8000, 48_000)]
    noise[1][20_000:28_000] = 0
    for name, samples in zip(("a", "b"), noise, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
    return [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]


@pytest.fixture
def short(tmp_path) -> list[str]:
    """Options for an untrained system, whose texts would not end."""
    (tmp_path / "decode.yaml").write_text("{maxlenratio: 0.1, loop_tokens: 0, vad: {threshold: 0}}\n")
    return ["--config", str(tmp_path / "decode.yaml"), "--device", "cpu"]


def test_each_output_has_the_same_texts(recipe, audio, short, capsys, monkeypatch, tmp_path):
    model = ["--model", str(recipe / "exp" / "mole"), *short]
    assert main(["transcribe", *audio, *model, "--output", "json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["name"] for result in results] == audio and set(results[0]["posteriors"]) == set(CODES)
    assert main(["transcribe", *audio, *model]) == 0
    assert capsys.readouterr().out == "".join(f"{result['name']}\t{result['text']}\n" for result in results)
    assert main(["transcribe", audio[0], *model]) == 0
    assert capsys.readouterr().out == results[0]["text"] + "\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path(audio[0]).read_bytes())))
    assert main(["transcribe", "-", *model]) == 0
    assert capsys.readouterr().out == results[0]["text"] + "\n"
    assert main(["transcribe", *audio, *model, "--output_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "b.txt").read_text() == results[1]["text"] + "\n"


def test_timestamps_go_to_every_form(recipe, audio, short, capsys):
    options = [
        "transcribe",
        audio[1],
        "--model",
        str(recipe / "exp" / "student"),
        "--lang",
        "de",
        *short,
        "--timestamps",
    ]
    assert main([*options, "--output", "json"]) == 0
    segments = json.loads(capsys.readouterr().out)["segments"]
    assert segments[0]["start"] > 0 and segments[-1]["end"] <= 3.0 and "<|" not in segments[0]["text"]
    with_text = [segment for segment in segments if segment["text"]]
    assert main([*options, "--output", "vtt"]) == 0
    cues = [block for block in capsys.readouterr().out.split("\n\n") if " --> " in block]
    starts = [float(cue.partition(" --> ")[0].rpartition(":")[2]) for cue in cues]
    assert starts == [pytest.approx(segment["start"], abs=1e-3) for segment in with_text]
    assert main([*options, "--output", "srt"]) == 0
    assert capsys.readouterr().out.count(" --> ") == len(with_text)
    assert main([*options[:-1], "--output", "json", "--max_segment", "30"]) == 0
    assert json.loads(capsys.readouterr().out)["segments"][0]["start"] == 0


def read_subtitles(file: Path) -> list[tuple[float, float, bytes]]:
    """Start, duration and text of the subtitles as FFmpeg reads them."""
    av = pytest.importorskip("av", reason="needs PyAV, FFmpeg's reader of subtitles: pip install faster-whisper")
    with av.open(str(file)) as subtitles:
        return [
            (float(p.pts * p.time_base), float(p.duration * p.time_base), bytes(p)) for p in subtitles.demux() if p.size
        ]


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_a_player_reads_subtitles_split_at_timestamps(recipe, audio, short, tmp_path, form):
    model = ["--model", str(recipe / "exp" / "student"), "--lang", "de", *short, "--timestamps"]
    (result,) = Speech2Text.from_pretrained(model[1], config=short[1], device="cpu", timestamps=True).transcribe(
        audio[1], "de"
    )
    assert main(["transcribe", audio[1], *model, "--output", form, "--output_dir", str(tmp_path)]) == 0
    shown = read_subtitles(tmp_path / f"b.{form}")
    with_text = [segment for segment in result.segments if segment.text]
    expected = [pytest.approx((segment.start, segment.end), abs=2e-3) for segment in with_text]
    assert [(start, start + length) for start, length, _ in shown] == expected
    assert shown and all(length > 0 and text for _, length, text in shown)


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_a_player_reads_subtitles_split_in_silences(recipe, audio, short, tmp_path, form):
    model = ["--model", str(recipe / "exp" / "student"), "--lang", "de", *short]
    out = ["--output", form, "--max_segment", "2", "--output_dir", str(tmp_path)]
    assert main(["transcribe", audio[1], *model, *out]) == 0
    first, second = read_subtitles(tmp_path / f"b.{form}")
    assert first[0] == 0 and second[0] == pytest.approx(first[1]) and sum(second[:2]) == pytest.approx(3.0)
    assert 20_000 / 16_000 < second[0] < 28_000 / 16_000  # in the silence
    assert first[2] and second[2]


def test_files_that_cannot_be_read_are_listed_after_the_others_are_written(recipe, audio, short, tmp_path, capsys):
    (tmp_path / "bad.wav").write_bytes(Path(audio[1]).read_bytes()[:30_000])
    options = ["--model", str(recipe / "exp" / "mole"), *short, "--output_dir", str(tmp_path / "out")]
    files = [str(tmp_path / "missing.wav"), audio[0], str(tmp_path / "bad.wav"), audio[1]]
    assert main(["transcribe", *files, *options]) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.txt", "b.txt"]
    missing, bad, summary = capsys.readouterr().err.splitlines()[-3:]
    assert missing == f"error: missing file: {tmp_path / 'missing.wav'}" and summary == (
        "error: 2 of 4 files were not transcribed"
    )
    assert bad.startswith(f"error: truncated: {tmp_path / 'bad.wav'}: the header promises 3.00 s, ")
    assert main(["transcribe", str(tmp_path / "bad.wav"), *options]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == bad


def test_a_folder_gives_its_audio_files_in_order(recipe, audio, short, tmp_path, capsys):
    folder = tmp_path / "talks"
    (folder / "day2").mkdir(parents=True)
    for name, file in (("b.WAV", audio[0]), ("a.wav", audio[0]), ("day2/a.wav", audio[1])):
        (folder / name).write_bytes(Path(file).read_bytes())
    (folder / "notes.txt").write_text("no audio")
    model = ["--model", str(recipe / "exp" / "mole"), *short]
    assert main(["transcribe", str(folder), *model]) == 0
    names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [str(folder / name) for name in ("a.wav", "b.WAV", "day2/a.wav")]
    assert main(["transcribe", str(folder), *model, "--output_dir", str(tmp_path / "out")]) == 0
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.txt"))
    assert written == ["a.txt", "b.txt", "day2/a.txt"]
    (tmp_path / "empty").mkdir()
    assert main(["transcribe", str(tmp_path / "empty"), *model]) == 1
    assert f"error: the folder {tmp_path / 'empty'} has no audio file: looked for" in capsys.readouterr().err

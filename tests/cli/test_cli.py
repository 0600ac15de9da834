import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import soundfile
from conftest import BOUND, tiny_whisper
from systems import CODES, make_recipe

from espnet_lole import Speech2Text
from espnet_lole.cli.main import COMMANDS, get_parser, main

ROOT = Path(__file__).resolve().parents[2]


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
    """Options for an untrained system, which would talk without end."""
    (tmp_path / "decode.yaml").write_text("maxlenratio: 0.1\n")
    return ["--config", str(tmp_path / "decode.yaml"), "--device", "cpu"]


def test_help_is_quick_and_has_examples_that_parse():
    code = "import sys; from espnet_lole.cli.main import get_parser; get_parser(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    for name, module in COMMANDS.items():
        examples = [line.strip() for line in module.__doc__.splitlines() if line.startswith("  lole ")]
        assert any(shlex.split(line)[1] == name for line in examples)
        for line in examples:
            get_parser().parse_args(shlex.split(line.partition(" >")[0])[1:])


def test_commands_in_the_documents_parse():
    documents = [*ROOT.glob("docs/*.md"), ROOT / "README.md"]
    lines = [line for file in documents for line in file.read_text().splitlines() if line.startswith("lole ")]
    assert len(lines) > 10
    for line in lines:
        get_parser().parse_args(shlex.split(line.partition(" >")[0], comments=True)[1:])


def test_usage_errors_exit_with_2(capsys):
    for wrong in ([], ["nonsense"], ["transcribe", "a.wav"], ["score"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
    assert "usage: lole" in capsys.readouterr().err


def test_transcribing(recipe, audio, short, capsys, monkeypatch, tmp_path):
    model = ["--model", str(recipe / "exp" / "mole"), *short]
    assert main(["transcribe", *audio, *model, "--output", "json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f["name"] for f in found] == audio and set(found[0]["posteriors"]) == set(CODES)
    assert main(["transcribe", *audio, *model]) == 0
    assert capsys.readouterr().out == "".join(f"{f['name']}\t{f['text']}\n" for f in found)
    assert main(["transcribe", audio[0], *model]) == 0
    assert capsys.readouterr().out == found[0]["text"] + "\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path(audio[0]).read_bytes())))
    assert main(["transcribe", "-", *model]) == 0
    assert capsys.readouterr().out == found[0]["text"] + "\n"
    assert main(["transcribe", *audio, *model, "--output_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "b.txt").read_text() == found[1]["text"] + "\n"


def test_timestamps_go_to_every_form(recipe, audio, short, capsys):
    options = ["transcribe", audio[1], "--model", str(recipe / "exp" / "student"), "--lang", "de", *short, "--timestamps"]
    assert main([*options, "--output", "json"]) == 0
    segments = json.loads(capsys.readouterr().out)["segments"]
    assert segments[0]["start"] > 0 and segments[-1]["end"] <= 3.0 and "<|" not in segments[0]["text"]
    said = [s for s in segments if s["text"]]
    assert main([*options, "--output", "vtt"]) == 0
    shown = capsys.readouterr().out.split("\n\n")[1:-1]
    assert [cue.partition(" --> ")[0] for cue in shown] == [f"00:00:{s['start']:06.3f}" for s in said]
    assert main([*options, "--output", "srt"]) == 0
    assert capsys.readouterr().out.count(" --> ") == len(said)
    assert main([*options[:-1], "--output", "json", "--max_segment", "30"]) == 0
    assert json.loads(capsys.readouterr().out)["segments"][0]["start"] == 0


def played(file: Path) -> list[tuple[float, float, bytes]]:
    """Start, duration and text of the subtitles as FFmpeg reads them."""
    av = pytest.importorskip("av", reason="needs PyAV, FFmpeg's reader of subtitles: pip install faster-whisper")
    with av.open(str(file)) as subtitles:
        return [(float(p.pts * p.time_base), float(p.duration * p.time_base), bytes(p)) for p in subtitles.demux() if p.size]


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_a_player_reads_subtitles_cut_at_times(recipe, audio, short, tmp_path, form):
    model = ["--model", str(recipe / "exp" / "student"), "--lang", "de", *short, "--timestamps"]
    (result,) = Speech2Text.from_pretrained(model[1], config=short[1], device="cpu", timestamps=True).transcribe(audio[1], "de")
    assert main(["transcribe", audio[1], *model, "--output", form, "--output_dir", str(tmp_path)]) == 0
    shown = played(tmp_path / f"b.{form}")
    said = [s for s in result.segments if s.text]
    assert [(start, start + length) for start, length, _ in shown] == [pytest.approx((s.start, s.end), abs=2e-3) for s in said]
    assert shown and all(length > 0 and text for _, length, text in shown)


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_a_player_reads_the_subtitles(recipe, audio, short, tmp_path, form):
    model = ["--model", str(recipe / "exp" / "student"), "--lang", "de", *short]
    out = ["--output", form, "--max_segment", "2", "--output_dir", str(tmp_path)]
    assert main(["transcribe", audio[1], *model, *out]) == 0
    (first, second) = played(tmp_path / f"b.{form}")
    assert first[0] == 0 and second[0] == pytest.approx(first[1]) and sum(second[:2]) == pytest.approx(3.0)
    assert 20_000 / 16_000 < second[0] < 28_000 / 16_000  # cut in the silence
    assert first[2] and second[2]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("transcribe a.wav --model nowhere", "expected the folder of a trained system, but nowhere is not there"),
        ("transcribe nowhere.wav --model {mole}", "missing file: nowhere.wav"),
        ("transcribe a.wav b.wav --model {mole} --output srt", "expected --output_dir with srt for several files"),
        ("transcribe a.wav x/a.wav --model {mole} --output_dir out", "got one twice"),
        ("transcribe {audio} --model {experts}", "experts alone do not find it"),
        ("info nowhere", "nowhere is not there"),
        ("export {mole} out --format merged", "MoLE has no merged form"),
        ("export {merged} out", "it can be used as it is"),
        ("export {experts} out --format merged --lang tr", "experts and the language of one of them (de en fr zh)"),
        ("add-expert {experts}/adapters/de --lang fr --model {experts}", "expected a language without an expert, got 'fr'"),
        ("add-expert {experts}/adapters/de --lang xx --model {experts}", "expected a language code of Whisper, got 'xx'"),
        (
            "add-expert {experts}/adapters/de --lang it --model {mole}",
            "expected a folder of experts, got a system of kind 'mole'",
        ),
        ("score --ref nowhere --hyp nowhere --lang de", "No such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_1(recipe, audio, capsys, command, message):
    folders = {name: recipe / "exp" / name for name in ("mole", "experts")}
    line = command.format(merged=recipe / "exp" / "student" / "merged", audio=audio[0], **folders)
    assert main(shlex.split(line)) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("error: ") and message in told[-1]


def test_info(recipe, capsys):
    assert main(["info", str(recipe / "exp" / "mole")]) == 0
    told = capsys.readouterr().out
    for part in ("mole", "de en fr zh", "fr: rank 4, ", "encoder layers 1 to 2 are shared"):
        assert part in told
    assert main(["info", str(recipe / "exp" / "student"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "student" and facts["ranks"] == {"student": 6}
    size = sum(6 * (layer.in_features + layer.out_features) for layer in _linears())
    assert facts["parameters"] == {"student": size}


def _linears():
    ends = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    return [module for name, module in tiny_whisper().named_modules() if name.endswith(ends)]


def test_score_reads_transcripts_and_kaldis_text(tmp_path, capsys):
    (tmp_path / "ref").write_text("a Eins zwei, drei\nb vier\n")
    (tmp_path / "hyp").write_text("some/where/b.wav\tvier\na.flac\teins drei\n")
    command = ["score", "--ref", str(tmp_path / "ref"), "--hyp", str(tmp_path / "hyp"), "--lang"]
    assert main([*command, "de"]) == 0
    assert capsys.readouterr().out.startswith("wer 25.00 %: 0 substitutions, 1 deletions, 0 insertions in 4 words of 2")
    assert main([*command, "zh"]) == 0
    assert capsys.readouterr().out.startswith("cer ")
    (tmp_path / "hyp").write_text("a eins\nc vier\n")
    assert main([*command, "de"]) == 1 and "1 of 2 utterances have no hypothesis: b" in capsys.readouterr().err
    (tmp_path / "hyp").write_text("a.wav eins\na.flac vier\n")
    assert main([*command, "de"]) == 1 and "'a' occurs twice" in capsys.readouterr().err


def test_score_accepts_spaces_in_the_names_of_files(tmp_path, capsys):
    (tmp_path / "text").write_text("my first.wav\tEins\nmy second.wav\t\n")
    assert main(["score", "--ref", str(tmp_path / "text"), "--hyp", str(tmp_path / "text"), "--lang", "de"]) == 0
    assert "in 1 words of 1 utterances" in capsys.readouterr().out


def test_adding_an_expert_leaves_the_others_alone(tmp_path, audio, short, capsys):
    """An adapter of stock peft, of another rank and other targets."""
    made = make_recipe(tmp_path / "made")
    experts = made / "exp" / "experts"
    config = peft.LoraConfig(r=6, lora_alpha=3, target_modules=["q_proj", "fc1"], use_rslora=True, init_lora_weights=False)
    peft.get_peft_model(tiny_whisper(), config).save_pretrained(made / "foreign")

    def said(lang: str) -> str:
        assert main(["transcribe", *audio, "--model", str(experts), "--lang", lang, *short]) == 0
        return capsys.readouterr().out

    before = said("de")
    assert main(["add-expert", str(made / "foreign"), "--lang", "it", "--model", str(experts)]) == 0
    assert "it has an expert" in capsys.readouterr().out
    assert said("de") == before != said("it")
    assert main(["add-expert", str(made / "foreign"), "--lang", "de", "--model", str(experts), "--replace"]) == 0
    capsys.readouterr()
    assert said("de") != before


@pytest.mark.slow
def test_a_read_only_folder_is_told_in_one_line_and_loses_nothing(recipe, audio, short, tmp_path):
    full, model = tmp_path / "full", str(recipe / "exp" / "experts")
    full.mkdir()
    (full / "a.txt").write_text("old")
    calls = {
        f"{full}/a.txt": ["transcribe", audio[0], "--model", model, "--lang", "de", *short, "--output_dir", str(full)],
        f"{full}/new": ["export", model, str(full / "new")],
        f"{full}/de": ["export", model, str(full / "de"), "--format", "merged", "--lang", "de"],
        f"{full}/a.zip": ["export", model, str(full / "a.zip"), "--format", "pack"],
    }
    code = f"from espnet_lole.cli.main import main; print([main(call) for call in {list(calls.values())}])"
    full.chmod(0o555)
    done = subprocess.run([*BOUND, sys.executable, "-c", code], capture_output=True, text=True)
    full.chmod(0o755)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stdout.strip() == "[1, 1, 1, 1]" and "Traceback" not in done.stderr, done.stderr
    for line, file in zip(told, calls, strict=True):
        assert f"expected to write {file}, got: Permission denied: check the disk" in line
    assert [file.name for file in full.iterdir()] == ["a.txt"] and (full / "a.txt").read_text() == "old"

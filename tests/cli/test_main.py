"""The command line: help, usage errors, and mistakes in one line."""

import shlex
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import BOUND

from espnet_lole.cli.main import COMMANDS, get_parser, main


@pytest.fixture
def audio(tmp_path) -> str:
    """A file of noise."""
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32), 16_000)
    return str(tmp_path / "noise.wav")


def test_help_is_quick_and_has_examples_that_parse():
    code = "import sys; from espnet_lole.cli.main import get_parser; get_parser(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    for name, module in COMMANDS.items():
        examples = [line.strip() for line in module.__doc__.splitlines() if line.startswith("  lole ")]
        assert any(shlex.split(line)[1] == name for line in examples)
        for line in examples:
            get_parser().parse_args(shlex.split(line.partition(" >")[0])[1:])


def test_usage_errors_exit_with_2(capsys):
    for wrong in ([], ["nonsense"], ["transcribe", "a.wav"], ["score"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
    assert "usage: lole" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("transcribe a.wav --model nowhere", "nowhere"),
        ("transcribe nowhere.wav --model {mole}", "missing file: nowhere.wav"),
        ("transcribe a.wav b.wav --model {mole} --output srt", "--output_dir"),
        ("transcribe a.wav x/a.wav --model {mole} --output_dir out", "--output_dir"),
        ("transcribe {audio} --model {experts} --vad_threshold 0 --lang tr", "there is no expert for 'tr'"),
        (
            "transcribe {audio} --model {mole} --vad_threshold 2",
            "a threshold of vad from 0 to below 1, got 2.0",
        ),
        ("transcribe {audio} --model {mole} --langs de it", "was trained for de en fr zh, not for it"),
        ("info nowhere", "nowhere"),
        ("export {mole} out --format merged", "{mole} holds LoRA MoLE, which is no single Whisper"),
        ("export {mole} out.tgz", "out.tgz must have the ending .zip"),
        ("export {whisper} out", "{whisper} is a whole Whisper, which needs no export"),
        (
            "export {experts} out --format merged --lang tr",
            "{experts} holds one expert per language, and a Whisper can have one of them: expected --lang with one of",
        ),
        ("export {experts} out --format merged", "one of de en fr zh, got None"),
        (
            "add-expert {experts}/adapters/de --lang fr --model {experts}",
            "fr has an expert already, {experts}/adapters/fr",
        ),
        ("add-expert {experts}/adapters/de --lang xx --model {experts}", "'xx'"),
        (
            "add-expert {experts}/adapters/de --lang it --model {mole}",
            "{mole} holds a system of kind mole, not experts",
        ),
        ("score --ref nowhere --hyp nowhere --lang de", "expected a file nowhere, but there is none"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_1(recipe, audio, capsys, command, message):
    names = {name: str(recipe / "exp" / name) for name in ("mole", "experts")}
    names |= {"whisper": str(recipe / "tiny"), "audio": audio}
    assert main(shlex.split(command.format(**names))) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: ") and message.format(**names) in errors[-1]


@pytest.mark.slow
def test_a_read_only_folder_is_named_in_one_line_and_loses_nothing(recipe, audio, tmp_path):
    folder, model = tmp_path / "read_only", str(recipe / "exp" / "experts")
    (tmp_path / "decode.yaml").write_text("{maxlenratio: 0.1, vad: {threshold: 0}}\n")
    folder.mkdir()
    (folder / "noise.txt").write_text("old")
    decoding = [
        "--config",
        str(tmp_path / "decode.yaml"),
        "--device",
        "cpu",
        "--output_dir",
        str(folder),
        "--overwrite",
    ]
    commands = {
        "noise.txt": ["transcribe", audio, "--model", model, "--lang", "de", *decoding],
        "new": ["export", model, str(folder / "new")],
        "de": ["export", model, str(folder / "de"), "--format", "merged", "--lang", "de"],
        "a.zip": ["export", model, str(folder / "a.zip")],
    }
    code = f"from espnet_lole.cli.main import main; print([main(command) for command in {list(commands.values())}])"
    folder.chmod(0o555)
    done = subprocess.run([*BOUND, sys.executable, "-c", code], capture_output=True, text=True)
    folder.chmod(0o755)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stdout.strip() == "[1, 1, 1, 1]" and "Traceback" not in done.stderr, done.stderr
    for line, name in zip(errors, commands, strict=True):
        assert f"cannot write {folder}/{name}: Permission denied" in line
    assert [file.name for file in folder.iterdir()] == ["noise.txt"] and (folder / "noise.txt").read_text() == "old"

"""An export is a stock model of ESPnet, which finds the texts of the system without this package."""

import os
import subprocess
from pathlib import Path

import pytest
import soundfile
import torch
import whisper as openai_whisper
import yaml
from conftest import tiny_whisper
from espnet2.main_funcs.pack_funcs import unpack
from espnet2.tasks.asr import ASRTask
from systems import make_spoken_student, speak

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main
from espnet_lole.export.espnet import published_name
from espnet_lole.export.merged import merge_system
from espnet_lole.export.transformers import save_whisper_model
from espnet_lole.inference.load import find_system
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.sizes import SIZES
from espnet_lole.whisper.tokenizer import WhisperTokenizer

STOCK = r"""
import os, re, sys, torch
card, *files = sys.argv[1:]
os.environ["XDG_CACHE_HOME"] = card + ".cache"
code = re.search(r"```python\n(.*?)```", open(card).read(), re.S)[1]
code = code.replace("FOLDER_OF_THIS_FILE", os.path.dirname(card))
for file in files:
    lang = os.path.basename(file)[:2]
    exec(re.sub(r"<\|\w+\|> <", f"<|{lang}|> <", code.replace('"a.wav"', repr(file))))
written, built = set(torch.load(folder / "valid.acc.best.pth")), set(s2t.asr_model.state_dict())
assert written == built, written ^ built
assert not [name for name in sys.modules if name.startswith("espnet_lole")]
"""
"""Runs the lines of the model card as they stand."""


@pytest.fixture(scope="module")
def exported(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "student"
    assert main(["export", str(recipe / "exp" / "student"), str(folder), "--format", "espnet"]) == 0
    return folder


def test_espnets_own_parser_takes_the_configuration(exported):
    args = ASRTask.get_parser().parse_args(["--config", str(exported / "config.yaml"), "--output_dir", "exp"])
    assert (args.encoder, args.decoder, args.frontend, args.specaug, args.normalize) == (
        "whisper",
        "whisper",
        *3 * [None],
    )
    assert args.encoder_conf["whisper_model"] == args.decoder_conf["whisper_model"] == "whisper-16-3-2"


def test_the_vocabulary_is_whispers(exported):
    tokens, tokenizer = yaml.safe_load((exported / "config.yaml").read_text())["token_list"], WhisperTokenizer(51865)
    assert len(tokens) == 51865 and tokens[-1] == "<|30.00|>"
    assert tokens.index("<|startoftranscript|>") == tokenizer.sot and tokens.index("<|endoftext|>") == tokenizer.eot
    assert [tokens[i] for i in tokenizer.encode("drei Kilometer", "de")] == [" drei", " Kil", "ometer"]


def test_the_weights_are_those_of_openais_encoder_and_decoder_which_espnet_copies(recipe, exported):
    """From the file of dimensions, as ESPnet does; the outputs are those of the merged system."""
    (file,) = exported.glob("*/whisper-16-3-2.pt")
    assert file.stat().st_size < 100_000
    stock = openai_whisper.load_model(str(file), device="cpu")
    weights = torch.load(exported / "valid.acc.best.pth", weights_only=True)
    for part in ("encoder", "decoder"):
        prefix = f"{part}.{part}s."
        state = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        getattr(stock, part).load_state_dict(state)
    merged, _ = merge_system(find_system(recipe / "exp" / "student"), None)
    mel, tokens = torch.randn(1, 80, 3000), torch.tensor([[50258, 50261, 50359, 50363, 300]])
    with torch.no_grad():
        there = merged.logits(merged.decode(tokens, merged.finish(merged.embed_mel(mel, torch.tensor([3000])))))
        torch.testing.assert_close(stock(mel, tokens), there, rtol=1e-4, atol=1e-4)


def test_an_archive_is_unpacked_by_espnet_to_the_same_files(recipe, exported, tmp_path):
    assert main(["export", str(recipe / "exp" / "student"), str(tmp_path / "student.zip"), "--format", "espnet"]) == 0
    files = unpack(tmp_path / "student.zip", tmp_path / "unpacked")
    assert sorted(files) == ["asr_model_file", "asr_train_config"]  # options of Speech2Text
    there, here = (torch.load(file) for file in (files["asr_model_file"], exported / "valid.acc.best.pth"))
    assert all(torch.equal(there[name], here[name]) for name in here | there)
    there, here = (yaml.safe_load(open(file)) for file in (files["asr_train_config"], exported / "config.yaml"))
    assert there == here
    assert (tmp_path / "unpacked" / "README.md").read_text() == (exported / "README.md").read_text()


def test_a_published_size_has_espnets_name_and_another_has_a_file_of_its_dimensions():
    assert [published_name(size.config()) for size in SIZES.values()][:6] == [
        *("tiny", "base", "small", "medium", "large", "large"),
    ]
    assert published_name(tiny_whisper().config) is None
    assert published_name(SIZES["openai/whisper-base"].config(frames=750)) is None


@pytest.mark.parametrize(
    ("system", "options", "reason"),
    [
        ("experts", [], "holds one expert per language, and a Whisper can have one of them: expected --lang"),
        ("experts", ["--lang", "it"], "expected --lang with one of de en fr zh, got it"),
        ("mole", [], "holds LoRA MoLE, which is no single Whisper"),
    ],
)
def test_several_experts_are_no_model_of_espnet(recipe, tmp_path, capsys, system, options, reason):
    command = ["export", str(recipe / "exp" / system), str(tmp_path / "out"), "--format", "espnet", *options]
    assert main(command) == 1 and not (tmp_path / "out").exists()
    assert reason in capsys.readouterr().err


def test_one_expert_and_a_whole_whisper_are_models_of_espnet(recipe, tmp_path):
    full = tmp_path / "full"
    save_whisper_model(Whisper(tiny_whisper(seed=3)), full / "whisper", ["de", "tr"])
    (full / "config.yaml").write_text(yaml.safe_dump({"system": "full", "backbone": "x", "langs": ["tr", "de"]}))
    for source, options in ((recipe / "exp" / "experts", ["--lang", "fr"]), (full, [])):
        out = tmp_path / f"out_{source.name}"
        assert main(["export", str(source), str(out), "--format", "espnet", *options]) == 0
        merged, metadata = merge_system(find_system(source), *options[1:] or [None])
        weights = torch.load(out / "valid.acc.best.pth")
        assert torch.equal(weights["decoder.decoders.blocks.1.mlp.0.weight"], merged.decoder.layers[1].fc1.weight)
        (known,) = {"fr", "de"} & set(metadata.languages)  # ESPnet's whisper_language knows no Turkish
        assert yaml.safe_load((out / "config.yaml").read_text())["preprocessor_conf"]["whisper_language"] == known
        assert f'lang_prompt_token="<|{metadata.languages[0]}|> <|transcribe|>"' in (out / "README.md").read_text()


def test_a_whisper_of_128_mel_bins_is_none_of_espnet(tmp_path, capsys):
    tiny_whisper(mels=128, vocab=51866).save_pretrained(tmp_path / "v3")
    assert main(["export", str(tmp_path / "v3"), str(tmp_path / "out"), "--format", "espnet"]) == 1
    assert "ESPnet's Whisper has 80 mel bins" in capsys.readouterr().err


def test_the_card_says_what_espnet_does_not_do_by_itself(tmp_path):
    for pad_to, share, pads, line in (
        ("none", 0.0, False, None),
        ("+1s", 0.0, False, "numpy.pad(speech, (0, 16000))"),
        ("+1s", 0.1, True, "ESPnet pads the input to 30 s here"),
        ("30s", 0.0, True, None),
    ):
        student = make_spoken_student(tmp_path / f"{pad_to}{share}", pad_to, share)
        out = tmp_path / f"out{pad_to}{share}"
        assert main(["export", str(student), str(out), "--format", "espnet"]) == 0
        assert yaml.safe_load((out / "config.yaml").read_text())["encoder_conf"]["do_pad_trim"] == pads
        card = (out / "README.md").read_text()
        assert [
            text for text in ("numpy.pad(speech, (0, 16000))", "ESPnet pads the input to 30 s here") if text in card
        ] == ([line] if line else [])


def stock_python() -> str:
    """Return the Python of an environment with ESPnet and its fork of openai-whisper, or skip the test.

    The distribution openai-whisper 20230308 of the package index may stand for the fork, which was made from it: it has
    the modules and functions that ESPnet's Whisper calls.
    """
    python = os.environ.get("ESPNET_WHISPER_PYTHON", ".venv-espnet-whisper/bin/python")
    code = "from whisper.audio import N_MELS; import espnet2"  # N_MELS is gone from later versions
    try:
        subprocess.run([python, "-c", code], check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs ESPnet's fork of openai-whisper (make env-espnet-whisper): {error}")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("pad_to", ["none", "+1s", "30s"])
def test_stock_espnet_finds_the_texts_of_the_system(tmp_path, pad_to):
    python = stock_python()
    student = make_spoken_student(tmp_path / "student", pad_to)
    assert main(["export", str(student), str(tmp_path / "student.zip"), "--format", "espnet"]) == 0
    unpack(tmp_path / "student.zip", tmp_path / "unpacked")
    ours, texts = Speech2Text.from_pretrained(student, device="cpu", vad_threshold=0), []
    for i, (lang, speech) in enumerate(speak()):
        soundfile.write(tmp_path / f"{lang}{i}.wav", speech, 16_000, subtype="FLOAT")
        texts.append(ours(speech, lang)[0][0])
    files = sorted(tmp_path.glob("*.wav"), key=lambda file: int(file.stem[2:]))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", STOCK, str(tmp_path / "unpacked" / "README.md"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(texts) and done.stdout.splitlines()[-len(texts) :] == texts

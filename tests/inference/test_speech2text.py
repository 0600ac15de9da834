import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from systems import CODES

from espnet_lole import Speech2Text
from espnet_lole.bin.lole_inference import described_system, get_parser
from espnet_lole.data.audio import AudioError
from espnet_lole.inference.longform import split
from espnet_lole.inference.results import srt
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.system import find_system, load_system
from espnet_lole.inference.timestamps import cut_at_times
from espnet_lole.lole.routing import RoutingConfig
from espnet_lole.tasks.lole import LoLETask
from espnet_lole.whisper.tokenizer import WhisperTokens

RATE = 16_000


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    """Four noisy utterances of 0.3 to 1 s."""
    random = np.random.default_rng(0)
    return [random.normal(0, 0.1 * (i + 1), size).astype(np.float32) for i, size in enumerate((16000, 9001, 12345, 5000))]


@pytest.fixture(scope="module")
def decoding(tmp_path_factory):
    """A decoding that ends soon: the tiny random Whisper talks without end."""
    file = tmp_path_factory.mktemp("conf") / "decode.yaml"
    file.write_text("{beam_size: 2, maxlenratio: 0.1, batch_seconds: 2.0}\n")
    return file


@pytest.fixture
def load(recipe, decoding):
    return lambda name, **options: Speech2Text.from_pretrained(recipe / "exp" / name, config=decoding, device="cpu", **options)


@pytest.mark.parametrize("kind", ["experts", "mole", "student"])
def test_adapters_are_held_in_the_precision_of_the_training(recipe, kind):
    system = find_system(recipe / "exp" / kind)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        low = replace(system, conf=system.conf | {"precision": name})
        transcriber = load_system(low, "cpu", SearchConfig(), RoutingConfig())
        backbone = transcriber.mole.backbone if kind == "mole" else transcriber.backbone
        assert {p.dtype for n, p in backbone.named_parameters() if ".lora_" in n} == {dtype}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, espnet_lole; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    with pytest.raises(ImportError, match="nonsense"):
        from espnet_lole import nonsense  # noqa: F401


def test_nothing_is_loaded_before_it_is_needed(load):
    s2t = load("mole")
    assert s2t.languages == CODES and "transcriber" not in vars(s2t)
    assert load("student/merged").languages == CODES


@pytest.mark.parametrize("system", ["mole", "student", "student/merged", "experts"])
def test_result_has_espnets_form_and_is_that_of_the_system(load, rows, system):
    s2t = load(system)
    langs = ["de", "zh", "fr", "en"] if system == "experts" else None
    direct = s2t.transcriber([torch.from_numpy(row) for row in rows], langs)
    for i, row in enumerate(rows):
        ((text, tokens, ids, hypothesis),) = s2t(row, langs and langs[i])
        assert ids == hypothesis.tokens == direct[i].hypothesis.tokens
        assert text == s2t.transcriber.tokens.decode(ids) and len(tokens) == len(ids)
    assert s2t(np.zeros(300, dtype=np.float32)) == []


def test_many_inputs_come_back_in_order(load, rows, tmp_path):
    """Files, samples, rates and streams; more than a read-ahead; languages given, found and mixed."""
    s2t = load("mole")
    soundfile.write(tmp_path / "a.wav", rows[0], RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "b.flac", np.stack([rows[1], rows[1]], axis=1), RATE)
    stereo = (np.stack([rows[2], rows[2]], axis=1), RATE)
    with open(tmp_path / "a.wav", "rb") as stream:
        inputs = [tmp_path / "a.wav", str(tmp_path / "b.flac"), stereo, torch.from_numpy(rows[3]), stream]
        found = list(s2t.transcribe(inputs, [None, "zh", None, "de", "en"]))
    assert [r.name for r in found] == [str(tmp_path / "a.wav"), str(tmp_path / "b.flac"), "2", "3", str(tmp_path / "a.wav")]
    for result, (row, lang) in zip(found, [(0, None), (1, "zh"), (2, None), (3, "de"), (0, "en")], strict=True):
        ((text, _, _, _),) = s2t(rows[row], lang)
        assert result.text == text and result.language == (lang or result.language)
        assert sum(result.posteriors.values()) == pytest.approx(1) and set(result.posteriors) == set(CODES)
        assert result.confidence == result.posteriors[result.language]
        assert result.duration == len(rows[row]) / RATE and result.took > 0
        assert [(s.start, s.end, s.text) for s in result.segments] == [(0.0, result.duration, text)]
    many = list(s2t.transcribe((rows[i % 4] for i in range(40)), "de"))
    assert [r.text for r in many] == [r.text for r in many[:4]] * 10


def test_rates_are_converted(load, rows):
    s2t = load("student")
    (slow,) = s2t.transcribe((rows[0][::2], 8_000), "de")
    assert slow.duration == 1.0 and slow.posteriors is None and slow.confidence is None
    loud = (rows[0] * 32768).round().clip(-32768, 32767).astype(np.int16)
    (whole,) = s2t.transcribe(loud, "de")
    assert whole.text == s2t(loud.astype(np.float32) / 32768, "de")[0][0]


def test_long_audio_has_a_segment_for_each_piece(load, rows):
    s2t, heard = load("student"), []
    gap = np.zeros(4000, dtype=np.float32)
    speech = np.concatenate([part for row in rows for part in (row, gap)])
    (whole,) = s2t.transcribe(speech, "de", max_segment=1.2, progress=heard.append)
    assert len(whole.segments) > 2 and sum(heard) == pytest.approx(whole.duration)
    for segment in whole.segments:
        assert segment.text == s2t(speech[round(segment.start * RATE) : round(segment.end * RATE)], "de")[0][0]
    assert whole.text == " ".join(s.text for s in whole.segments).strip()
    (nothing,) = s2t.transcribe(np.zeros(10, dtype=np.float32))
    assert nothing.text == "" and nothing.segments == [] and nothing.duration == 10 / RATE


@pytest.mark.parametrize("system", ["mole", "student", "student/merged", "experts"])
def test_timestamps_cut_the_pieces_of_long_audio_further(load, rows, system):
    s2t, tokens = load(system, timestamps=True), WhisperTokens(51865)
    speech = np.concatenate(rows * 2)
    (whole,) = s2t.transcribe(speech, "de", max_segment=1.2)
    expected = []
    for start, stop in split(speech, round(1.2 * RATE)):
        ((_, shown, ids, _),) = s2t(speech[start:stop], "de")
        assert shown[0].startswith("<|0.") and ids[0] >= tokens.first_time
        timed = cut_at_times(ids, (stop - start) / RATE, tokens)
        expected += [(start / RATE + t.start, start / RATE + t.end, tokens.decode(t.tokens), "de") for t in timed]
    assert [(s.start, s.end, s.text, s.language) for s in whole.segments] == expected
    assert any(s.start not in {a / RATE for a, _ in split(speech, round(1.2 * RATE))} for s in whole.segments)
    assert "<|" not in whole.text
    clocks = re.findall(r"(\d\d):(\d\d):(\d\d),(\d{3})", srt(whole.segments))
    shown = [3600 * int(h) + 60 * int(m) + int(s) + int(ms) / 1000 for h, m, s, ms in clocks]
    assert len(shown) >= 4 and shown == sorted(shown) and shown[-1] <= round(whole.duration, 3)
    assert all(end > start for start, end in zip(shown[::2], shown[1::2], strict=True))


def test_a_yaml_asks_for_timestamps(recipe, tmp_path):
    (tmp_path / "decode.yaml").write_text("{timestamps: true, maxlenratio: 0.1}\n")
    s2t = Speech2Text.from_pretrained(recipe / "exp" / "student", config=tmp_path / "decode.yaml")
    assert s2t.search.timestamps and not Speech2Text.from_pretrained(recipe / "exp" / "student").search.timestamps
    (tmp_path / "decode.yaml").write_text("{maxlenratio: 0.001}\n")
    with pytest.raises(ValueError, match="expected with timestamps a maxlenratio that leaves 30 s 3 tokens"):
        Speech2Text.from_pretrained(recipe / "exp" / "student", config=tmp_path / "decode.yaml", timestamps=True)


def test_experts_are_found_from_their_folder_alone(load, rows, recipe):
    whole, folder = load("experts"), load("experts/adapters")
    assert folder.languages == CODES and folder.system.backbone == str(recipe / "tiny")
    one = load("experts/adapters/fr", languages=["fr"])
    for s2t in (folder, one):
        assert s2t(rows[0], "fr")[0][2] == whole(rows[0], "fr")[0][2]
    with pytest.raises(ValueError, match="experts alone do not find it"):
        whole(rows[0])


def test_adapters_alone_know_the_window_and_say_when_they_are_damaged(load, rows, recipe, tmp_path):
    assert load("experts/adapters").transcriber.backbone.window == "short"
    options = ["--test_dirs", "x", "--output_dir", "x", "--experts", str(recipe / "exp" / "experts" / "adapters")]
    args = get_parser().parse_args([*options, "--backbone", str(recipe / "tiny")])
    assert described_system(args).window == "short"
    shutil.copytree(recipe / "exp" / "experts" / "adapters", tmp_path / "adapters")
    weights = tmp_path / "adapters" / "de" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"expected whole safetensors in {weights}"):
        assert find_system(tmp_path / "adapters").window


def test_silence_that_is_worked_through_counts_in_a_batch(load, rows, monkeypatch):
    s2t, sizes = load("student"), []
    s2t.batch_seconds = 3.0
    encode = s2t.transcriber.backbone.encode
    monkeypatch.setattr(
        s2t.transcriber.backbone, "encode", lambda speech, *args: sizes.append(len(speech)) or encode(speech, *args)
    )
    for silence, batches in ((0, [3, 1]), (RATE, [1, 1, 1, 1])):
        sizes.clear()
        monkeypatch.setattr(s2t.transcriber.backbone, "input_samples", lambda samples, more=silence: samples + more)
        list(s2t.transcribe(rows, "de"))
        assert sizes == batches


def test_mole_is_the_one_of_the_training(recipe, load, rows, monkeypatch):
    """ESPnet's way of building it gives the same posteriors."""
    monkeypatch.chdir(recipe)
    folder = recipe / "exp" / "mole"
    model, _ = LoLETask.build_model_from_file(folder / "config.yaml", folder / "valid.loss.ave.pth")
    shallow = model.eval().mole.shallow(torch.from_numpy(rows[0])[None], torch.tensor([len(rows[0])]))
    (found,) = load("mole").transcribe(rows[0])
    theirs = model.classifier(shallow).softmax(-1)[0].tolist()
    assert list(found.posteriors.values()) == pytest.approx(theirs, abs=1e-5)


def test_mistakes_are_told(recipe, load, rows, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a trained system"):
        Speech2Text.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got none of them: train the system first"):
        Speech2Text.from_pretrained(tmp_path)
    (tmp_path / "config.yaml").write_text("{system: transducer}")
    with pytest.raises(ValueError, match="expected system: experts, mole, student or full in .*, got 'transducer'"):
        Speech2Text.from_pretrained(tmp_path)
    (tmp_path / "config.yaml").write_text("{system: student, langs: [de], backbone: tiny}")
    with pytest.raises(FileNotFoundError, match="adapters/student is not there: train and export it first"):
        Speech2Text.from_pretrained(tmp_path)
    s2t = load("mole")
    with pytest.raises(AudioError, match="missing file"):
        list(s2t.transcribe("nowhere.wav"))
    with pytest.raises(AudioError, match="missing file: touch"):
        list(s2t.transcribe("touch x |"))
    with pytest.raises(ValueError, match="got fewer after 1: give one for all, or one for each"):
        list(s2t.transcribe(rows[:2], ["de"]))
    with pytest.raises(ValueError, match="got more languages than inputs after 1"):
        list(s2t.transcribe(rows[:1], ["de", "en"]))
    with pytest.raises(ValueError, match=r"expected samples of shape \(S,\) or \(S, channels\)"):
        s2t(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="there are experts for de en fr zh"):
        s2t(rows[0], "tr")


def test_checkpoints_of_other_parts_are_refused(recipe, tmp_path):
    from systems import make_recipe

    made = make_recipe(tmp_path)
    file = made / "exp" / "mole" / "valid.loss.ave.pth"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"experts_fingerprint": state["experts_fingerprint"] + 1}, file)
    with pytest.raises(ValueError, match="trained on the same experts"):
        _ = Speech2Text.from_pretrained(file.parent).transcriber
    torch.save({name: value for name, value in state.items() if name != "fusion.raw"}, file)
    with pytest.raises(ValueError, match="a MoLE of the languages de en fr zh"):
        _ = Speech2Text.from_pretrained(file.parent).transcriber

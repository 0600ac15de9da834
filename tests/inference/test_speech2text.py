import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import tiny_whisper
from systems import CODES

from espnet_lole import Speech2Text
from espnet_lole.data.audio import AudioError
from espnet_lole.inference.batching import pad_speech
from espnet_lole.inference.load import read_decoding_config, write_decoding_config
from espnet_lole.inference.longform import split
from espnet_lole.inference.results import srt
from espnet_lole.inference.speech_detector import VadConfig
from espnet_lole.inference.timestamps import split_at_timestamps
from espnet_lole.lole.mole import RoutingConfig
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

RATE = 16_000


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    """Four noisy utterances of 0.3 to 1 s."""
    random = np.random.default_rng(0)
    return [
        random.normal(0, 0.1 * (i + 1), size).astype(np.float32) for i, size in enumerate((16000, 9001, 12345, 5000))
    ]


@pytest.fixture(scope="module")
def decoding(tmp_path_factory):
    """A configuration of few tokens, because the hypotheses of the tiny random Whisper have no end."""
    file = tmp_path_factory.mktemp("conf") / "decode.yaml"
    file.write_text("{beam_size: 2, maxlenratio: 0.1, batch_seconds: 2.0, loop_tokens: 0, vad: {threshold: 0}}\n")
    return file


@pytest.fixture
def load(recipe, decoding):
    return lambda name, **options: Speech2Text.from_pretrained(
        recipe / "exp" / name, config=decoding, device="cpu", **options
    )


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, espnet_lole; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    with pytest.raises(ImportError, match="nonsense"):
        from espnet_lole import nonsense  # noqa: F401


def test_nothing_is_loaded_before_the_first_use(load):
    s2t = load("mole")
    assert s2t.languages == CODES and "transcriber" not in vars(s2t)


@pytest.mark.parametrize("system", ["mole", "student", "whisper", "experts"])
def test_result_has_espnets_form_and_is_that_of_the_system(load, rows, system, tmp_path):
    if system == "whisper":
        Whisper(tiny_whisper()).save(tmp_path / "whisper")
    s2t = load(tmp_path / "whisper" if system == "whisper" else system)
    langs = ["de", "zh", "fr", "en"] if system == "experts" else None
    direct = s2t.transcriber(*pad_speech([torch.from_numpy(row) for row in rows], s2t.transcriber.whisper), langs)
    for i, row in enumerate(rows):
        ((text, tokens, ids, hypothesis),) = s2t(row, langs and langs[i])
        assert ids == hypothesis.tokens == direct[i].tokens
        assert text == s2t.transcriber.tokenizer.decode(ids) and len(tokens) == len(ids)
    assert s2t(np.zeros(300, dtype=np.float32)) == []


def test_many_inputs_come_back_in_order(load, rows, tmp_path):
    """Files, samples, rates and streams, more than are read ahead; with given and unknown languages."""
    s2t = load("mole")
    soundfile.write(tmp_path / "a.wav", rows[0], RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "b.flac", np.stack([rows[1], rows[1]], axis=1), RATE)
    stereo = (np.stack([rows[2], rows[2]], axis=1), RATE)
    with open(tmp_path / "a.wav", "rb") as stream:
        inputs = [tmp_path / "a.wav", str(tmp_path / "b.flac"), stereo, torch.from_numpy(rows[3]), stream]
        results = list(s2t.transcribe(inputs, [None, "zh", None, "de", "en"]))
    assert [r.name for r in results] == [
        str(tmp_path / "a.wav"),
        str(tmp_path / "b.flac"),
        "2",
        "3",
        str(tmp_path / "a.wav"),
    ]
    for result, (row, lang) in zip(results, [(0, None), (1, "zh"), (2, None), (3, "de"), (0, "en")], strict=True):
        ((text, _, _, _),) = s2t(rows[row], lang)
        assert result.text == text and result.language == (lang or result.language)
        assert sum(result.posteriors.values()) == pytest.approx(1) and set(result.posteriors) == set(CODES)
        assert result.confidence == result.posteriors[result.language]
        assert result.duration == len(rows[row]) / RATE and result.decode_seconds > 0
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
    s2t, seconds = load("student"), []
    gap = np.zeros(4000, dtype=np.float32)
    speech = np.concatenate([part for row in rows for part in (row, gap)])
    (whole,) = s2t.transcribe(speech, "de", max_segment=1.2, progress=seconds.append)
    assert len(whole.segments) > 2 and sum(seconds) == pytest.approx(whole.duration)
    for segment in whole.segments:
        assert segment.text == s2t(speech[round(segment.start * RATE) : round(segment.end * RATE)], "de")[0][0]
    assert whole.text == " ".join(s.text for s in whole.segments).strip()
    (nothing,) = s2t.transcribe(np.zeros(10, dtype=np.float32))
    assert nothing.text == "" and nothing.segments == [] and nothing.duration == 10 / RATE


@pytest.mark.parametrize("system", ["mole", "student", "experts"])
def test_timestamps_cut_the_pieces_of_long_audio_further(load, rows, system):
    s2t, tokenizer = load(system, timestamps=True), WhisperTokenizer(51865)
    speech = np.concatenate(rows * 2)
    (whole,) = s2t.transcribe(speech, "de", max_segment=1.2)
    expected = []
    for start, stop in split(speech, round(1.2 * RATE)):
        ((_, shown, ids, _),) = s2t(speech[start:stop], "de")
        assert shown[0].startswith("<|0.") and ids[0] >= tokenizer.timestamp_begin
        for first, last, text in split_at_timestamps(ids, (stop - start) / RATE, tokenizer):
            expected.append((start / RATE + first, start / RATE + last, tokenizer.decode(text), "de"))
    assert [(s.start, s.end, s.text, s.language) for s in whole.segments] == expected
    assert any(s.start not in {a / RATE for a, _ in split(speech, round(1.2 * RATE))} for s in whole.segments)
    assert "<|" not in whole.text
    clocks = re.findall(r"(\d\d):(\d\d):(\d\d),(\d{3})", srt(whole.segments))
    shown = [3600 * int(h) + 60 * int(m) + int(s) + int(ms) / 1000 for h, m, s, ms in clocks]
    assert len(shown) >= 4 and shown == sorted(shown) and shown[-1] <= round(whole.duration, 3)
    assert all(end > start for start, end in zip(shown[::2], shown[1::2], strict=True))


def test_timestamps_are_an_option_of_the_yaml(recipe, tmp_path):
    (tmp_path / "decode.yaml").write_text("{timestamps: true, maxlenratio: 0.1}\n")
    s2t = Speech2Text.from_pretrained(recipe / "exp" / "student", config=tmp_path / "decode.yaml")
    assert s2t.search.timestamps and not Speech2Text.from_pretrained(recipe / "exp" / "student").search.timestamps
    (tmp_path / "decode.yaml").write_text("{maxlenratio: 0.001}\n")
    with pytest.raises(ValueError, match="maxlenratio 0.001 allows 30 s of speech 1 tokens, but timestamps need 3"):
        Speech2Text.from_pretrained(recipe / "exp" / "student", config=tmp_path / "decode.yaml", timestamps=True)


def test_silence_and_noise_give_no_text(recipe, rows):
    s2t = Speech2Text.from_pretrained(recipe / "exp" / "mole", device="cpu")
    for samples in (np.zeros(5 * RATE, dtype=np.float32), rows[0]):
        (result,) = s2t.transcribe(samples)
        assert (result.text, result.segments, result.token_ids, result.language) == ("", [], [], None)
        assert s2t(samples) == []


def test_a_system_decodes_with_the_options_that_it_was_scored_with(recipe, decoding, tmp_path):
    folder = shutil.copytree(recipe, tmp_path / "recipe") / "exp" / "mole"
    scored = read_decoding_config(decoding, {"routing": {"candidates": 3}})
    write_decoding_config(folder, scored)
    default, given = (Speech2Text.from_pretrained(folder, config=config) for config in (None, decoding))
    assert (default.batch_seconds, default.search, default.routing) == scored[:3] and default.vad == VadConfig()
    assert (given.search, given.routing) == (scored.search, RoutingConfig())
    assert Speech2Text.from_pretrained(folder, timestamps=True).search == replace(scored.search, timestamps=True)


@pytest.mark.parametrize("system", ["mole", "student"])
def test_a_language_is_chosen_from_the_possible_ones(load, rows, system):
    every, some = load(system), load(system, languages=["zh", "fr"])
    assert some.languages == ("zh", "fr")
    for free, chosen in zip(every.transcribe(rows), some.transcribe(rows), strict=True):
        total = free.posteriors["zh"] + free.posteriors["fr"]
        expected = {lang: free.posteriors[lang] / total for lang in ("zh", "fr")}
        assert chosen.posteriors == pytest.approx(expected, rel=1e-3)
        assert chosen.language == max(expected, key=expected.get) == chosen.segments[0].language
    assert [r.text for r in some.transcribe(rows, "de")] == [r.text for r in every.transcribe(rows, "de")]


def test_experts_are_found_from_their_folder_alone(load, rows, recipe):
    whole, folder = load("experts"), load("experts/adapters")
    assert folder.languages == CODES and folder.system.backbone == str(recipe / "tiny")
    one = load("experts/adapters/fr", languages=["fr"])
    for s2t in (folder, one):
        assert s2t(rows[0], "fr")[0][2] == whole(rows[0], "fr")[0][2]
    (found,) = whole.transcribe(rows[0])
    assert found.language == max(found.posteriors, key=found.posteriors.get) and found.posteriors.keys() == set(CODES)


def test_mistakes_are_refused(load, rows):
    s2t = load("mole")
    with pytest.raises(AudioError, match="missing file"):
        list(s2t.transcribe("nowhere.wav"))
    with pytest.raises(AudioError, match="missing file: touch"):
        list(s2t.transcribe("touch x |"))
    with pytest.raises(ValueError, match="got fewer after 1: give one for all, or one for each"):
        list(s2t.transcribe(rows[:2], ["de"]))
    with pytest.raises(ValueError, match="got more languages than inputs after 1"):
        list(s2t.transcribe(rows[:1], ["de", "en"]))
    with pytest.raises(
        ValueError, match=r"input 0: expected samples of shape \(S,\), \(S, channels\) or \(channels, S\)"
    ):
        s2t(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="there are experts for de en fr zh"):
        s2t(rows[0], "tr")


def test_every_form_of_an_input_has_the_same_text(load, rows, tmp_path):
    s2t, speech = load("student"), rows[0]
    soundfile.write(tmp_path / "a.wav", speech, RATE, subtype="FLOAT")
    raw = (tmp_path / "a.wav").read_bytes()
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(speech[None]), sample_rate=RATE)
    )
    forms = [
        speech[None], np.stack([speech, speech]), torch.from_numpy(speech)[None], speech.astype(np.float64),
        (speech, np.int64(RATE)), (RATE, speech), (torch.from_numpy(speech)[None], torch.tensor(RATE)),
        {"array": speech, "sampling_rate": RATE, "path": None}, {"raw": speech.tolist(), "sampling_rate": RATE},
        {"path": str(tmp_path / "a.wav"), "bytes": None}, {"path": "gone.wav", "bytes": raw}, raw, decoder,
    ]  # fmt: skip
    expected = s2t(speech, "de")[0][0]
    for form in forms:
        (result,) = s2t.transcribe(form, "de")
        assert result.text == expected and result.duration == 1.0
    assert [result.text for result in s2t.transcribe(forms, "de")] == [expected] * len(forms)


def test_an_input_that_cannot_be_read_does_not_stop_the_others(load, rows, tmp_path):
    s2t = load("student")
    soundfile.write(tmp_path / "a.wav", rows[0], RATE)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:20_000])
    inputs = [rows[1], str(tmp_path / "cut.wav"), np.full(9000, np.nan), {"audio": 1}, rows[0]]
    first, cut, nan, unknown, last = s2t.transcribe(inputs, "de", return_exceptions=True)
    assert [first.text, last.text] == [s2t(rows[1], "de")[0][0], s2t(rows[0], "de")[0][0]]
    assert str(cut).startswith(f"truncated: {tmp_path / 'cut.wav'}: ") and str(nan).startswith("not finite: input 2: ")
    assert isinstance(cut, AudioError) and "input 3: expected a dictionary with array and sampling_rate" in str(unknown)
    results = s2t.transcribe(inputs, "de")
    assert next(results).text == first.text
    with pytest.raises(AudioError, match="truncated: "):
        next(results)


def test_devices_that_do_not_exist_are_refused(recipe):
    for device, message in (("cuda:99", "device cuda:99: PyTorch sees"), ("gpu", "expected a device cpu, cuda or")):
        with pytest.raises(ValueError, match=message):
            Speech2Text.from_pretrained(recipe / "exp" / "mole", device=device)

"""Damaged inputs of every kind: the right answer, or an error that names the file (and the line where it has lines)."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import random_experts, tiny_whisper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from espnet_lole.data.audio import AudioError, read_audio, resample, to_int16
from espnet_lole.data.corpora import load_corpus
from espnet_lole.data.formatting import format_dir
from espnet_lole.data.kaldi import KaldiDir, read_segments, read_table, write_table
from espnet_lole.inference.load import read_decoding_config
from espnet_lole.lole.adapters import load_adapters, save_adapter
from espnet_lole.whisper.model import Whisper

SIZES = [10, pytest.param(300, marks=pytest.mark.slow)]
every_size = pytest.mark.parametrize("examples", SIZES, ids=["few", "many"])
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=30)
IDS = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="\ufeff"),
    min_size=1,
    max_size=8,
)


def fuzz(examples: int, law: Callable, *strategies: st.SearchStrategy) -> None:
    """Check a law on this many examples, the same ones in every run."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks)(
        given(*strategies)(law)
    )()


@every_size
def test_tables_name_the_line_or_are_read(examples, tmp_path):
    file = tmp_path / "text"
    line = st.one_of(
        st.binary(max_size=20), TEXT.map(str.encode), st.sampled_from([b"a x", b"b", b"a\ty", b"\r", b"r 0 1 2"])
    )

    def law(lines):
        file.write_bytes(b"\n".join(lines))
        for read in (read_table, read_segments):
            try:
                table = read(file)
            except ValueError as error:
                assert re.match(rf"{re.escape(str(file))}:\d+: expected ", str(error))
            else:
                assert len(table) == sum(
                    bool(raw.decode("utf-8-sig").strip(" \t\r")) for raw in b"\n".join(lines).split(b"\n")
                )

    fuzz(examples, law, st.lists(line, max_size=6))


@every_size
def test_any_text_survives_a_table_and_the_tokenizer(examples, tmp_path, tokenizer):
    """Right-to-left and combining characters, emoji, any script: not a character is changed."""

    def law(table, text):
        table = {key: value.strip() for key, value in table.items()}
        write_table(tmp_path / "text", table)
        assert read_table(tmp_path / "text") == table
        for lang in ("ar", "zh"):
            assert tokenizer.decode(tokenizer.encode(text, lang)) == text.strip()

    texts = st.one_of(
        TEXT, st.sampled_from(["שלום עולם", "مرحبا", unicodedata.normalize("NFD", "é à ñ"), "กำ", "👩‍👩‍👧"])
    )
    fuzz(examples, law, st.dictionaries(IDS, texts, max_size=4), texts)


@every_size
def test_audio_of_any_shape_becomes_16_khz_or_is_refused(examples, tmp_path):
    file = str(tmp_path / "a.wav")
    values = st.sampled_from([0.0, 1.0, -1.0, 0.3, 5.5, -7.5, 1e-9, float("nan"), float("inf")])

    def law(count, rate, channels, value, spike):
        samples = np.zeros((count, channels), dtype=np.float32)
        samples[::2] = value
        if count:
            samples[-1, -1] = spike
        soundfile.write(file, samples, rate, subtype="FLOAT")
        try:
            made = to_int16(resample(*read_audio(file)))
        except AudioError as error:
            assert not count or not np.isfinite(samples).all() or round(count * 16000 / rate) == 0, error
            return
        assert np.isfinite(samples).all() and made.dtype == np.int16
        assert abs(len(made) - count * 16000 / rate) <= 1
        if rate == 16000:
            expected = np.clip(np.rint(samples.mean(1, dtype=np.float32) * 32768.0), -32768, 32767)
            assert (made == expected).all()

    rates = st.one_of(st.integers(1000, 192000), st.sampled_from([8000, 16000, 44100, 48000]))
    fuzz(examples, law, st.integers(0, 3000), rates, st.integers(1, 4), values, values)


DAMAGES = (
    "none",
    "no text",
    "empty text",
    "no wav",
    "missing",
    "empty",
    "garbage",
    "nan",
    "stereo",
    "no language",
    "backwards",
)


@every_size
def test_damaged_kaldi_directories_lose_nothing_in_silence(examples, tmp_path):
    """Every utterance is either written at its length or named with a reason."""

    def law(damages):
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        kaldi = KaldiDir(source, {}, {}, {}, {}, {})
        for i, damage in enumerate(damages):
            utt, wav, samples = f"u{i}", source / f"u{i}.wav", np.full(8000, 0.1, dtype=np.float32)
            samples = {"nan": samples * np.nan, "stereo": np.stack([samples, samples], 1)}.get(damage, samples)
            soundfile.write(wav, samples, 16000, subtype="FLOAT")
            if damage in ("empty", "garbage"):
                wav.write_bytes(b"" if damage == "empty" else b"no audio" * 20)
            kaldi.wav |= {} if damage == "no wav" else {f"r{i}": str(wav) + ".not" * (damage == "missing")}
            kaldi.text |= {} if damage == "no text" else {utt: "" if damage == "empty text" else "ja"}
            kaldi.utt2lang |= {} if damage == "no language" else {utt: "de"}
            kaldi.utt2spk[utt] = utt
            kaldi.segments |= {utt: (f"r{i}", 0.4, 0.1) if damage == "backwards" else (f"r{i}", 0.0, 0.25)}
        (source / "segments").write_text("".join(f"{u} {r} {a} {b}\n" for u, (r, a, b) in kaldi.segments.items()))
        kaldi.segments = None
        kaldi.write(source)
        good = {f"u{i}" for i, damage in enumerate(damages) if damage in ("none", "stereo")}
        try:
            tallies = format_dir(source, tmp_path / "made", "wav", nj=1)
        except ValueError as error:
            assert str(source) in str(error) and not good
            return
        assert set(read_table(tmp_path / "made" / "wav.scp")) == good
        assert set(read_table(tmp_path / "made" / "utt2num_samples").values()) <= {"4000"}
        assert {utt for tally in tallies for utt in tally.dropped} == {f"u{i}" for i in range(len(damages))} - good

    fuzz(examples, law, st.lists(st.sampled_from(DAMAGES), max_size=5))


@every_size
def test_yaml_is_read_or_refused_with_its_file(examples, tmp_path):
    file = tmp_path / "conf.yaml"
    keys = st.sampled_from(
        ["beam_size", "maxlenratio", "routing", "batch_seconds", "experts", "languages", "root", "de", "train", "x"]
    )
    scalars = st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.floats(-1, 2), TEXT)
    values = st.recursive(
        scalars, lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(keys, inner, max_size=3))
    )
    documents = st.one_of(st.dictionaries(keys, values, max_size=4), values).map(lambda v: yaml.safe_dump(v).encode())

    def law(document):
        file.write_bytes(document)
        try:
            seconds, search, routing, _ = read_decoding_config(file)
            assert seconds > 0 and isinstance(search.beam_size, int) and isinstance(routing.candidates, int)
        except ValueError as error:
            assert str(file) in str(error)
        try:
            assert load_corpus(file)[1]
        except ValueError as error:
            assert str(file) in str(error)

    fuzz(
        examples,
        law,
        st.one_of(documents, st.binary(max_size=30), st.sampled_from([b"", b"- a", b"a: [", b"a: 1\na: 2"])),
    )


ADAPTER_DAMAGES = (
    "none", "shape", "rank", "missing B", "other name", "other kind", "nan", "integers", "vector", "cut weights",
    "cut config", "no rank",
)  # fmt: skip


def damage_adapter(folder: Path, damage: str, which: int, cut: float) -> None:
    """Damage an adapter of one language."""
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(weights)
    name = sorted(tensors)[which % len(tensors)]
    a = tensors[name]
    changed = {
        "shape": torch.cat([a, a], 1 if "lora_A" in name else 0), "rank": a[:1] if "lora_A" in name else a[:, :1],
        "nan": a * torch.nan, "integers": a.int(), "vector": a[0],
    }  # fmt: skip
    if damage in changed:
        tensors[name] = changed[damage].contiguous()
    elif damage in ("missing B", "other name", "other kind"):
        tensors.pop(name)
        if damage != "missing B":
            tensors["base_model.model.x.lora_A.weight" if damage == "other name" else name.replace("lora", "dora")] = a
    save_file(tensors, weights)
    if damage == "no rank":
        config.write_text(json.dumps({"peft_type": "IA3" if which % 2 else 3}))
    for file in (weights, config):
        if damage == ("cut weights" if file is weights else "cut config"):
            file.write_bytes(file.read_bytes()[: int(cut * file.stat().st_size)])


@every_size
def test_damaged_adapters_are_refused_with_their_folder(examples, tmp_path):
    folder, experts = tmp_path / "adapters", random_experts(("de", "en"), rank=3, alpha=6.0, targets=("q_proj", "fc1"))
    fresh = tiny_whisper().state_dict()

    def law(damage, which, cut):
        shutil.rmtree(folder, ignore_errors=True)
        for lang in experts.languages:
            save_adapter(experts, lang, folder / lang, "tiny")
        damage_adapter(folder / "en", damage, which, cut)
        target = tiny_whisper()
        target.load_state_dict(fresh)
        try:
            loaded = load_adapters(Whisper(target), folder)
        except ValueError as error:
            assert damage != "none" and str(folder / "en") in str(error)
            return
        assert damage == "none"
        for name, layer in loaded.layers.items():
            assert torch.equal(layer.lora_A["en"], experts.layers[name].lora_A["en"])

    fuzz(examples, law, st.sampled_from(ADAPTER_DAMAGES), st.integers(0, 50), st.floats(0, 0.9))

"""Digests are of the content: of every sample of a FLAC, and of weights without their metadata."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from espnet_lole.data.digests import differences, digest_set, digest_weights
from espnet_lole.data.kaldi import write_table


def digest(folder: Path, **audio: str | Path) -> dict[str, object]:
    """Return the digests of a set."""
    write_table(folder / "wav.scp", audio)
    write_table(folder / "text", dict.fromkeys(audio, "ja"))
    return digest_set(folder / "wav.scp", {"text": folder / "text"})


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_a_set_is_the_same_wherever_its_audio_lies_and_another_with_other_samples(tmp_path: Path, suffix: str) -> None:
    samples = np.random.default_rng(0).integers(-3000, 3000, 80000).astype(np.int16)
    files = [tmp_path / f"{name}{suffix}" for name in "abcd"]
    changed = samples.copy()
    changed[40000 if suffix == ".flac" else 0] += 1
    for file, audio in zip(files, (samples, samples, changed, samples[:-1]), strict=True):
        soundfile.write(file, audio, 16000)
    first, second, third, fourth = (digest(tmp_path, u=file) for file in files)
    assert first == second and len({part["audio"] for part in (first, third, fourth)}) == 3
    assert first.keys() == {"utterances", "audio", "text"} and first["text"] == third["text"]
    assert differences(first, third) == [f"audio: {first['audio']}, now {third['audio']}"]


def test_a_set_is_another_with_other_ids_or_entries(tmp_path: Path) -> None:
    entries = [{"u": "a.ark:7"}, {"u": "a.ark:9"}, {"v": "a.ark:7"}, {"u": "cat a |"}, {"u": "a.ark:7", "v": "a.ark:9"}]
    assert len({str(digest(tmp_path, **audio)) for audio in entries}) == len(entries)
    one, two = digest(tmp_path, u="a.wav"), digest(tmp_path, u="a.wav", v="b.wav")
    assert differences({"train": one}, {"train": two}) == ["train.utterances: 1, now 2"]


def test_weights_are_the_same_with_other_metadata_and_others_with_another_name_or_value(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    kinds = [(tensors, {"x": "1", "y": "2"}), (tensors, {"y": "3"}), (tensors, None)]
    kinds += [
        (tensors | {"b": torch.ones(4)}, None),
        (tensors | {"b": torch.zeros(2, 2)}, None),
        ({"a": tensors["a"]}, None),
    ]
    digests = []
    for number, (content, metadata) in enumerate(kinds):
        save_file(content, tmp_path / f"{number}.safetensors", metadata)
        digests.append(digest_weights(tmp_path / f"{number}.safetensors"))
    assert len(set(digests[:3])) == 1 and len(set(digests[2:])) == 4


def test_a_configuration_is_the_same_in_another_order_and_with_another_path_of_the_backbone(tmp_path: Path) -> None:
    """Peft writes its targets in another order in every process."""
    conf = {"r": 4, "target_modules": ["q", "v"], "base_model_name_or_path": "../whisper"}
    kinds = [conf, {"target_modules": ["v", "q"], "base_model_name_or_path": "/whisper", "r": 4}]
    kinds += [conf | {"r": 8}, conf | {"target_modules": ["q"]}]
    digests = []
    for number, content in enumerate(kinds):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
        digests.append(digest_weights(tmp_path / f"{number}.json"))
    assert digests[0] == digests[1] and len(set(digests)) == 3

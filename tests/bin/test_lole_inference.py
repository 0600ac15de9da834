import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from systems import CODES

from espnet_lole import Speech2Text
from espnet_lole.bin import lole_inference, lole_similar
from espnet_lole.evaluation.decodings import check_decoding
from espnet_lole.inference.load import read_decoding_config
from espnet_lole.systems import SCORED_DECODING


@pytest.fixture(scope="module")
def test_set(tmp_path_factory) -> Path:
    """Four short utterances of noise, one in each language."""
    folder = tmp_path_factory.mktemp("raw") / "test"
    folder.mkdir()
    tables = {"wav.scp": "", "utt2num_samples": "", "utt2lang": ""}
    for i, lang in enumerate(CODES):
        samples = np.random.default_rng(i).normal(0, 0.1 * (i + 1), 4000 + 1000 * i)
        soundfile.write(folder / f"{lang}.wav", samples, 16_000, subtype="FLOAT")
        tables["wav.scp"] += f"{lang} {folder / lang}.wav\n"
        tables["utt2num_samples"] += f"{lang} {len(samples)}\n"
        tables["utt2lang"] += f"{lang} {lang}\n"
    for name, text in tables.items():
        (folder / name).write_text(text)
    return folder


def decode(test_set: Path, output: Path, *options: str) -> None:
    fixed = ["--test_dirs", str(test_set), "--output_dir", str(output), "--maxlenratio", "0.1"]
    lole_inference.main([*fixed, *options])


@pytest.mark.parametrize("name", ["experts", "mole", "student"])
def test_hypotheses_of_a_test_set_are_those_of_the_api(recipe, test_set, tmp_path, name):
    scenarios = ["aware"] if name == "experts" else ["aware", "agnostic"]
    (tmp_path / "decode.yaml").write_text("{maxlenratio: 0.5, beam_size: 2}\n")
    decode(
        test_set, tmp_path / "decode", "--model", str(recipe / "exp" / name), "--scenarios", *scenarios,
        "--config", str(tmp_path / "decode.yaml"),
    )  # fmt: skip
    (tmp_path / "decode.yaml").write_text("{maxlenratio: 0.1, beam_size: 2, vad: {threshold: 0}}\n")
    s2t = Speech2Text.from_pretrained(recipe / "exp" / name, device="cpu", config=tmp_path / "decode.yaml")
    for scenario in scenarios:
        langs = CODES if scenario == "aware" else None
        results = list(s2t.transcribe((test_set / f"{lang}.wav" for lang in CODES), langs))
        folder = tmp_path / f"decode_{scenario}" / "test"
        lines = [line.split(maxsplit=1) for line in (folder / "token_int").read_text().splitlines()]
        assert lines == [[lang, " ".join(map(str, r.token_ids))] for lang, r in zip(CODES, results, strict=True)]
        expected = [f"{lang} {r.language}" for lang, r in zip(CODES, results, strict=True)]
        assert (folder / "lang").read_text().splitlines() == expected


def test_the_backbone_alone_and_few_experts_in_memory(recipe, test_set, tmp_path):
    backbone = ["--backbone", str(recipe / "tiny"), "--langs", "de", "zh", "--scenarios", "agnostic"]
    decode(test_set, tmp_path / "zero_shot", *backbone)
    lines = (tmp_path / "zero_shot_agnostic" / "test" / "lang").read_text().splitlines()
    assert {line.split()[1] for line in lines} <= {"de", "zh"}
    one_by_one = ["--max_loaded_experts", "1", "--batch_seconds", "0.1"]
    decode(test_set, tmp_path / "few", "--model", str(recipe / "exp" / "experts"), *one_by_one)
    decode(test_set, tmp_path / "all", "--model", str(recipe / "exp" / "experts"))
    texts = [(tmp_path / f"{name}_aware" / "test" / "token_int").read_text() for name in ("few", "all")]
    assert texts[0] == texts[1]


def test_the_options_of_a_decoding_are_written_beside_it(recipe, test_set, tmp_path):
    decode(test_set, tmp_path / "decode", "--model", str(recipe / "exp" / "student"), "--beam_size", "2")
    expected = read_decoding_config(None, {"beam_size": 2, "maxlenratio": 0.1})
    assert read_decoding_config(tmp_path / "decode_aware" / SCORED_DECODING) == expected


def test_experts_identify_the_language_by_the_whisper_below_them(recipe, test_set, tmp_path):
    decode(test_set, tmp_path / "x", "--model", str(recipe / "exp" / "experts"), "--scenarios", "agnostic")
    backbone = ["--backbone", str(recipe / "tiny"), "--langs", *CODES, "--scenarios", "agnostic"]
    decode(test_set, tmp_path / "y", *backbone)
    found = [(tmp_path / f"{name}_agnostic" / "test" / "lang").read_text() for name in ("x", "y")]
    assert found[0] == found[1]


def test_mistakes_end_with_a_message(recipe, test_set, tmp_path):
    with pytest.raises(SystemExit, match="error: expected the folder of a trained system, but nowhere is not there"):
        decode(test_set, tmp_path / "x", "--model", "nowhere")


def test_a_training_that_goes_on_to_more_epochs_is_not_decoded(recipe, test_set, tmp_path):
    """It has the adapters of its earlier end."""
    shutil.copytree(recipe, tmp_path / "recipe")
    model = tmp_path / "recipe" / "exp" / "student"
    (model / "training.json").touch()
    with pytest.raises(SystemExit, match=f"error: the system in {model} is not trained to its end: run stage 11 again"):
        decode(test_set, tmp_path / "x", "--model", str(model))
    (model / "resources.json").touch()
    decode(test_set, tmp_path / "x", "--model", str(model))
    check_decoding(tmp_path / "x_aware", test_set.parent, [test_set.name])
    (weights,) = (model / "adapters").rglob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="was decoded before .*safetensors got its present content"):
        check_decoding(tmp_path / "x_aware", test_set.parent, [test_set.name])


def test_similar_languages_are_ranked_by_the_mean_posterior(recipe, test_set, tmp_path):
    mole = recipe / "exp" / "mole"
    options = ["--data", str(test_set), "--output", str(tmp_path / "similar.txt")]
    lole_similar.main(["--model", str(mole), *options])
    lines = [line.split() for line in (tmp_path / "similar.txt").read_text().splitlines()]
    s2t = Speech2Text.from_pretrained(mole, device="cpu", vad_threshold=0)
    s2t.search = lole_inference.read_decoding_config(None, {"maxlenratio": 0.1})[1]
    posteriors = [r.posteriors for r in s2t.transcribe(test_set / f"{lang}.wav" for lang in CODES)]
    means = {lang: sum(p[lang] for p in posteriors) / len(CODES) for lang in CODES}
    assert [lang for lang, _ in lines] == sorted(means, key=means.get, reverse=True)
    assert {lang: float(mean) for lang, mean in lines} == pytest.approx(means, abs=1e-4)
    with pytest.raises(SystemExit, match="holds no MoLE"):
        lole_similar.main(["--model", str(recipe / "exp" / "student"), *options])


def test_resources_of_a_decoding_are_written(recipe, test_set, tmp_path):
    decode(test_set, tmp_path / "decode", "--model", str(recipe / "exp" / "student"))
    file = tmp_path / "decode_aware" / "resources.json"
    resources = json.loads(file.read_text())
    assert resources["parameters"] > 0 and resources["memory_gb"] > 0

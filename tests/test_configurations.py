"""Configurations: read whole, and without a key that another file or a default has already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from espnet2.bin import asr_inference
from espnet2.tasks.asr import ASRTask

from espnet_lole.config import config_files, load_yaml
from espnet_lole.data.corpora import load_corpus
from espnet_lole.inference.load import read_decoding_config
from espnet_lole.lole.system import SystemConfig
from espnet_lole.systems import base_system
from espnet_lole.tasks.lole import LoLETask

CONF = Path(__file__).resolve().parents[1] / "conf"
ESPNET = sorted(CONF.glob("**/train_espnet*.yaml"))
"""Configurations of ESPnet's own ``asr_train``."""


def chains() -> Iterator[tuple[str, list[Path]]]:
    """Yield each system, or variant of one, and its files; later ones override earlier ones."""
    for file in sorted(CONF.glob("**/train_*.yaml")):
        if file not in ESPNET:
            yield file.stem.removeprefix("train_"), config_files(file)


def options(system: str, files: list[Path]) -> dict[str, Any]:
    """Return the options of a training."""
    config = ["--config", *map(str, files)] if files else []
    given = ["--system", base_system(system), "--langs", "de", "en", "--output_dir", "x", "--backbone", "x"]
    return vars(LoLETask.parse_args([*config, *given[: -2 if files else None]]))


def leaves(conf: dict[str, Any]) -> Iterator[tuple[str, str | None, Any]]:
    """Yield key, key within it, and value."""
    for key, value in conf.items():
        yield from ((key, inner, x) for inner, x in value.items()) if isinstance(value, dict) else [(key, None, value)]


CHAINS = list(chains())
NAMES = [str(files[-1].relative_to(CONF)) for _, files in CHAINS]


@pytest.mark.parametrize(("system", "files"), CHAINS, ids=NAMES)
def test_a_training_has_the_values_of_its_own_file(system, files):
    read = options(system, files)
    SystemConfig.parse(read)
    for key, inner, value in leaves(load_yaml(files[-1])):
        assert (read[key] if inner is None else read[key][inner]) == value, (key, inner)


@pytest.mark.parametrize(("system", "files"), CHAINS, ids=NAMES)
def test_no_key_repeats_the_value_of_an_earlier_file_or_a_default(system, files):
    for number, file in enumerate(files):
        before = options(system, files[:number])
        for key, inner, value in leaves(load_yaml(file)):
            there = before[key] if inner is None else (before[key] or {}).get(inner)
            assert there != value, f"{file}: {key} {inner or ''} is {value} without this line"


@pytest.mark.parametrize("file", sorted(CONF.glob("**/decode*.yaml")), ids=lambda f: str(f.relative_to(CONF)))
def test_a_decoding_configuration_has_no_key_with_its_default(file):
    if file.stem.startswith("decode_espnet"):
        required = ["--output_dir", "x", "--key_file", "x", "--data_path_and_name_and_type", "x,speech,sound"]
        plain, read = (
            vars(asr_inference.get_parser().parse_args([*c, *required])) for c in ([], ["--config", str(file)])
        )
    else:
        plain, read = ({"batch_seconds": s, **vars(c)} for s, c, *_ in map(read_decoding_config, (None, file)))
    for key, value in load_yaml(file).items():
        assert read[key] == value != plain[key], key


def test_the_configuration_of_espnets_own_model_is_read(tmp_path):
    (tmp_path / "tokens.txt").write_text("<blank>\n<unk>\n<space>\na\n<sos/eos>\n")
    given = ["--config", str(CONF / "mini" / "train_espnet.yaml"), "--token_list", str(tmp_path / "tokens.txt")]
    assert ASRTask.build_model(ASRTask.get_parser().parse_args([*given, "--output_dir", "x"])).ctc_weight == 0.5


@pytest.mark.parametrize("file", ESPNET, ids=lambda f: str(f.relative_to(CONF)))
def test_espnets_own_task_reads_every_key_of_its_configurations(file):
    read = vars(ASRTask.get_parser().parse_args(["--config", str(file), "--output_dir", "x"]))
    for key, value in load_yaml(file).items():
        assert read[key] == value or list(map(list, read[key])) == value, key


@pytest.mark.parametrize("file", sorted(CONF.glob("corpora/*.yaml")), ids=lambda f: f.name)
def test_a_corpus_file_names_sources(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/human.csv").write_text("path,text,language,split\na.wav,Ja.,de,test\n")  # made by local/human
    assert load_corpus(file)[1]


def test_every_yaml_file_is_tested():
    tested = {file for _, files in CHAINS for file in files} | {
        *CONF.glob("**/decode*.yaml"),
        *CONF.glob("corpora/*.yaml"),
    }
    assert set(CONF.glob("**/*.yaml")) == tested | set(ESPNET)

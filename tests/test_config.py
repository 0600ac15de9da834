"""Configurations are read strictly, and messages name the file or part, the key and the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from espnet_lole.config import config_files, load_yaml, merge, read_conf


@dataclass(frozen=True)
class Part:
    rank: int
    alpha: float = 1.0
    layers: tuple[int, ...] | None = None
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("rank must be 1 or more")


def test_values_become_the_fields_with_their_types() -> None:
    conf = yaml.safe_load("{rank: 4, alpha: 8, layers: [1, 2], weights: {de: 2}}")
    part = read_conf(Part, conf, "part")
    assert part == Part(4, 8.0, (1, 2), {"de": 2.0}) and type(part) is Part
    assert isinstance(part.alpha, float) and isinstance(part.layers, tuple)
    assert read_conf(Part, {"rank": 4}, "part") == Part(4)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ("[1]", "part: expected a mapping with the keys rank, alpha, layers, weights, got [1]"),
        ("{alpha: 1.0}", "part: missing key 'rank' (known keys: rank, alpha, layers, weights)"),
        ("{rank: 1, ranks: 2}", "part: unknown key 'ranks' (known keys:"),
        ("{rank: 1, 2: 2}", "part: unknown key '2'"),
        ("{rank: '1'}", "part: rank: input should be a valid integer, got '1'"),
        ("{rank: 1.0}", "part: rank: input should be a valid integer, got 1.0"),
        ("{rank: true}", "part: rank: input should be a valid integer, got True"),
        ("{rank: null}", "part: rank: input should be a valid integer, got None"),
        (
            "{rank: 1, alpha: 1e-4}",
            "part: alpha: input should be a valid number, got '1e-4': write 1.0e-4 with its point",
        ),
        ("{rank: 1, alpha: true}", "part: alpha: input should be a valid number, got True"),
        ("{rank: 1, layers: '1'}", "part: layers: input should be a valid tuple, got '1'"),
        ("{rank: 1, layers: [a]}", "part: layers.0: input should be a valid integer, got 'a'"),
        ("{rank: 1, weights: {de: a}}", "part: weights.de: input should be a valid number, got 'a'"),
        ("{rank: 1, weights: {no: 1.0}}", "part: weights.0.[key]: input should be a valid string, got False"),
        ("{rank: 0}", "part: rank must be 1 or more"),
        (
            "{rank: a, alpha: b}",
            "part: rank: input should be a valid integer, got 'a'; alpha: input should be a valid number",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_key_and_value(conf: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        read_conf(Part, yaml.safe_load(conf), "part")
    assert str(raised.value).startswith(message)


def test_later_configurations_override_key_by_key() -> None:
    base = {"a": 1, "b": {"x": 1, "y": {"p": 1}}, "c": {"x": 1}, "d": [1, 2]}
    over = {"b": {"y": {"q": 2}, "x": 3}, "c": None, "d": [3], "e": {"z": 1}}
    expected = {"a": 1, "b": {"x": 3, "y": {"p": 1, "q": 2}}, "c": None, "d": [3], "e": {"z": 1}}
    assert merge(base, over) == expected
    assert base["b"] == {"x": 1, "y": {"p": 1}}


def test_a_variant_overrides_its_system_and_what_all_share(tmp_path: Path) -> None:
    names = ["train.yaml", "train_student.yaml", "train_student_long.yaml"]
    for name in [*names, "train_mole.yaml", "train_stud.yaml", "decode.yaml"]:
        (tmp_path / name).write_text("")
    assert [file.name for file in config_files(tmp_path / names[-1])] == names


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a: [", "not YAML in UTF-8"), (b"\xff", "not YAML"), (b"- a", "mapping of names"), (b"1: 2", "mapping")],
)
def test_a_file_that_is_no_mapping_is_refused_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "conf.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}: .*{message}"):
        load_yaml(file)


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text("# nothing\n")
    assert load_yaml(tmp_path / "conf.yaml") == {}
    with pytest.raises(FileNotFoundError, match=f"no configuration at {tmp_path / 'none.yaml'}"):
        load_yaml(tmp_path / "none.yaml")

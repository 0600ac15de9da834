"""Several jobs leave what one job leaves, byte for byte."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from systems import CODES

from espnet_lole.bin import lole_inference, lole_join

TABLES = ("text", "token", "token_int", "score", "lang", "lang_confidence")
SETS = ("test_one", "test_two")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Two sets of noise: many lengths, one recording over 30 s, one under 25 ms."""
    folder = tmp_path_factory.mktemp("raw")
    generator = np.random.default_rng(0)
    for number, name in enumerate(SETS):
        (folder / name).mkdir()
        lengths = [*generator.integers(2000, 30_000, 9), 300, *([16_000 * 41] if number == 0 else [])]
        tables = {"wav.scp": "", "utt2num_samples": "", "utt2lang": ""}
        for i, length in enumerate(lengths):
            file = folder / name / f"{i}.wav"
            soundfile.write(file, generator.normal(0, 0.1, length), 16_000, subtype="FLOAT")
            tables["wav.scp"] += f"u{i} {file}\n"
            tables["utt2num_samples"] += f"u{i} {length}\n"
            tables["utt2lang"] += f"u{i} {CODES[i % len(CODES)]}\n"
        for table, text in tables.items():
            (folder / name / table).write_text(text)
    return folder


def decode(model: Path, raw: Path, output: Path, share: str, *options: str) -> None:
    sets = [str(raw / name) for name in SETS]
    command = ["--model", str(model), "--test_dirs", *sets, "--output_dir", str(output), "--share", share]
    lole_inference.main([*command, "--maxlenratio", "0.1", "--batch_seconds", "6", *options])


def join(output: Path, jobs: int, *scenarios: str) -> None:
    lole_join.main(["--output_dir", str(output), "--jobs", str(jobs), "--scenarios", *scenarios])


@pytest.mark.parametrize(("system", "jobs"), [("experts", 2), ("mole", 3)])
def test_the_jobs_results_are_those_of_one(recipe, raw, tmp_path, system, jobs):
    scenarios = ["aware"] if system == "experts" else ["aware", "agnostic"]
    options = ["--scenarios", *scenarios]
    decode(recipe / "exp" / system, raw, tmp_path / "one", "1/1", *options)
    for job in range(1, jobs + 1):
        decode(recipe / "exp" / system, raw, tmp_path / "many", f"{job}/{jobs}", *options)
        assert not list(tmp_path.glob("many_a*"))  # nothing of a part stands among the results
    join(tmp_path / "many", jobs, *scenarios)
    for scenario in scenarios:
        one, many = (tmp_path / f"{name}_{scenario}" for name in ("one", "many"))
        found = {str(file.relative_to(one)) for file in one.rglob("*") if file.is_file()}
        assert found == {str(file.relative_to(many)) for file in many.rglob("*") if file.is_file()}
        for name in found - {"resources.json"}:
            if not name.endswith("rtf"):
                assert (one / name).read_bytes() == (many / name).read_bytes(), name
        files = [tmp_path / "many_logdir" / f"output.{job}" / scenario for job in range(1, jobs + 1)]
        memory = [json.loads((file / "resources.json").read_text())["memory_gb"] for file in files]
        joined, alone = (json.loads((folder / "resources.json").read_text()) for folder in (many, one))
        assert joined == alone | {"memory_gb": max(memory)}
        assert len({(many / name / "rtf").read_text() for name in SETS}) == 1


def test_a_job_that_is_missing_or_of_another_decoding_is_refused(recipe, raw, tmp_path):
    student = recipe / "exp" / "student"
    decode(student, raw, tmp_path / "x", "1/2")
    with pytest.raises(SystemExit, match=r"error: .*output.2/aware/decode.yaml is not there: this job has not ended"):
        join(tmp_path / "x", 2, "aware")
    decode(student, raw, tmp_path / "x", "2/2", "--beam_size", "2")
    with pytest.raises(SystemExit, match="are of different decodings: run stage 12 again"):
        join(tmp_path / "x", 2, "aware")
    decode(student, raw, tmp_path / "x", "2/3")
    with pytest.raises(SystemExit, match=r"\d+ pieces were decoded of 22: decode again"):
        join(tmp_path / "x", 2, "aware")
    assert not (tmp_path / "x_aware").exists()


@pytest.mark.parametrize("share", ["3/2", "0/2", "JOB/2", "1"])
def test_a_share_that_is_none_is_refused(share, raw, tmp_path, capsys):
    with pytest.raises(SystemExit):
        decode(tmp_path, raw, tmp_path / "x", share)
    assert "expected a job and the number of jobs, such as 2/4" in capsys.readouterr().err

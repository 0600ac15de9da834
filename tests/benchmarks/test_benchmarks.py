import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.harness import Claim, Measure, Outcome, alternate
from benchmarks.report import page, update

ROOT = Path(__file__).resolve().parents[2]


def test_contenders_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "ababab" and {name: len(s) for name, s in seconds.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("bar", "ratio", "holds"), [(">= 1.3", 1.5, "yes"), (">= 2", 1.5, "no"), ("<= 1.15", 2 / 3, "yes"), ("", 2 / 3, "")]
)
def test_a_bar_holds_or_not(bar, ratio, holds):
    claim = Claim("x", 2.0, 3.0, "s", bar)
    assert claim.ratio == pytest.approx(ratio) and claim.holds == holds


def test_a_later_run_replaces_its_own_rows_alone(tmp_path):
    for name, value in (("encode", 1.0), ("encode all", 5.0), ("encode", 2.0), ("decode", 3.0)):
        outcome = Outcome(
            [Measure(name, "ours", "s", value, value, value)], [Claim(f"{name}: a / b", value, 1.0, "s", "<= 2")]
        )
        update(tmp_path, name.split()[0], outcome, "Here.", "make bench")
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(r["benchmark"], r["ours"], r["holds"]) for r in rows] == [
        ("encode: a / b", "2", "yes"),
        ("decode: a / b", "3", "no"),
    ]
    assert "| decode: a / b | 3 | 1 | s | 3 | <= 2 | no |" in (tmp_path / "RESULTS.md").read_text()


def test_curves_are_drawn_by_their_axis():
    rows = [
        {
            "benchmark": "s",
            "contender": "c",
            "unit": "ms",
            "median": str(m),
            "low": "1",
            "high": "9",
            "axis": "rank",
            "point": str(p),
        }
        for m, p in ((2, 8), (4, 16))
    ]
    assert f"| 16 | c | 4 (1 to 9) | {'█' * 30} |" in page(rows, [], "", "")


def test_curves_are_drawn_into_a_picture(tmp_path):
    outcome = Outcome()
    for point in (1, 8):
        for name in ("train step", "decode step"):
            outcome.add("scaling", name, "ms", [point, 2.0 * point], "batch", point)
    update(tmp_path, "scaling", outcome, "Here.", "make bench")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "![Growth of the time of a step](curves.png)" in (tmp_path / "RESULTS.md").read_text()
    update(tmp_path, "encode", Outcome(), "Here.", "make bench")  # no curves: those of before stay
    assert "(curves.png)" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_said(capsys):
    with pytest.raises(SystemExit):
        main(["--gpu"])
    assert "expected a GPU for --gpu" in capsys.readouterr().err


@pytest.mark.slow
def test_every_benchmark_runs_in_a_tiny_size(tmp_path):
    subprocess.run([ROOT / "benchmarks" / "setup_peers.sh"], check=True)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/benchmarks/.peers", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output_dir", tmp_path]
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=1500)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    names = {row["benchmark"].split(":")[0] for row in rows}
    assert names >= {
        "train_step",
        "train_step memory",
        "kd_step",
        "decode_step",
        "encode",
        "whole_decode",
        "mole",
        "student_start",
    }
    different = [r for r in csv.DictReader((tmp_path / "measures.csv").open()) if "texts that differ" in r["benchmark"]]
    assert [row["median"] for row in different] == ["0"]  # our search and ESPnet's find the same texts

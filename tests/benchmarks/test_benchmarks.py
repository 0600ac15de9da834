import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.harness import Comparison, Measure, Outcome, alternate
from benchmarks.report import make_page, update

ROOT = Path(__file__).resolve().parents[2]


def test_contenders_take_turns_and_the_first_round_does_not_count():
    calls = []
    rounds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "ababab" and {name: len(r) for name, r in rounds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds():
    ours, other = Measure("x", "ours", "ms", [1.0, 10.0, 3.0]), Measure("x", "other", "ms", [2.0, 5.0, 3.0])
    row = Comparison(ours, other).row()
    assert (row["ratio"], row["low"], row["high"]) == (1.0, 0.5, 2.0)
    assert row["median"] / row["alternative median"] == 1.0


def test_a_later_run_replaces_only_its_own_rows(tmp_path):
    for name, value in (("encode", 1.0), ("encode all", 5.0), ("encode", 2.0), ("decode", 3.0)):
        outcome = Outcome()
        outcome.add(name, "a", "ms", [value])
        outcome.add(name, "b", "ms", [1.0])
        outcome.compare(name, "a", "b")
        update(tmp_path, name.split()[0], outcome, "Here.")
    rows = list(csv.DictReader((tmp_path / "comparisons.csv").open()))
    assert [(r["benchmark"], r["ratio"]) for r in rows] == [("encode", "2"), ("decode", "3")]
    assert "| decode | a | b | ms | 3 | 1 | 3 | 3 | 3 |" in (tmp_path / "RESULTS.md").read_text()


def test_a_curve_has_a_table_for_its_axis():
    fields = {"benchmark": "s", "contender": "c", "unit": "ms", "low": "1", "high": "9", "axis": "rank"}
    rows = [fields | {"median": str(m), "point": str(p)} for m, p in ((2, 8), (4, 16))]
    assert "## Growth with rank" in make_page([], rows, "") and "| 16 | c | ms | 4 | 1 | 9 |" in make_page([], rows, "")


def test_curves_are_drawn_into_a_picture(tmp_path):
    outcome = Outcome()
    for point in (1, 8):
        for name in ("train step", "decode step"):
            outcome.add("scaling", name, "ms", [point, 2.0 * point], "batch", point)
    update(tmp_path, "scaling", outcome, "Here.")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "(curves.png)" in (tmp_path / "RESULTS.md").read_text()
    update(tmp_path, "encode", Outcome(), "Here.")  # without curves: the picture of the other benchmark stays
    assert "(curves.png)" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_said(capsys):
    with pytest.raises(SystemExit):
        main(["--gpu"])
    assert "PyTorch finds no GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_every_benchmark_runs_in_a_tiny_size(tmp_path):
    subprocess.run([ROOT / "benchmarks" / "setup_peers.sh"], check=True)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/benchmarks/.peers", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks", "--size", "quick", "--output_dir", tmp_path]
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=1500)
    measures = list(csv.DictReader((tmp_path / "measures.csv").open()))
    assert {row["benchmark"].partition(" ")[0].strip(":,") for row in measures} >= set(BENCHMARKS)
    texts = [row["median"] for row in measures if "texts that differ" in row["benchmark"] + row["contender"]]
    assert texts == ["0"]  # our search and ESPnet's find the same texts

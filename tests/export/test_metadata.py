"""Metadata come from a training's folder, and an export keeps them."""

from dataclasses import replace

import pytest
import yaml
from systems import make_recipe

from espnet_lole.cli.main import main
from espnet_lole.export.metadata import History, collect_metadata
from espnet_lole.inference.load import find_system

HEADER = "system,scenario,set,language,metric,value\n"


@pytest.fixture
def training(tmp_path):
    """The folder of a MoLE with the log, the scores and the data of its training."""
    made = make_recipe(tmp_path)
    folder = made / "exp" / "mole"
    (folder / "train.log").write_text("x 1epoch results: [train] loss=1, [valid] loss=0.5, acc=0.75, time=1 minute\n")
    (folder / "greedy_aware").mkdir()
    rows = (
        "mole_l3,aware,test_de,de,wer_or_cer,1.0\nmole_l3,aware,all,de,wer_or_cer,12.5\nmole_l3,aware,all,de,wer,13.0\n"
    )
    (folder / "greedy_aware" / "results.csv").write_text(HEADER + rows)
    (made / "exp" / "results.csv").write_text(HEADER + "mole,aware,all,de,wer_or_cer,99.0\n")
    raw = made / "dump" / "raw" / "train"
    raw.mkdir(parents=True)
    (raw / "utt2lang").write_text("a de\nb fr\n")
    (raw / "utt2num_samples").write_text("a 57600000\nb 28800000\n")
    conf = yaml.safe_load((folder / "config.yaml").read_text())
    conf["train_data_path_and_name_and_type"] = [["dump/raw/train/utt2lang", "lang", "text"]]
    (folder / "config.yaml").write_text(yaml.safe_dump(conf))
    return folder


def test_history_is_collected_from_the_training_and_kept_by_an_export(training, tmp_path):
    metadata = collect_metadata(find_system(training))
    assert metadata.history == History(1, {"loss": 0.5, "acc": 0.75}, {"de": 1.0, "fr": 0.5}, {"aware": {"de": 12.5}})
    assert main(["export", str(training), str(tmp_path / "out" / "mine")]) == 0
    exported = collect_metadata(find_system(tmp_path / "out" / "mine"))
    assert exported == replace(metadata, backbone=str(tmp_path / "out" / "mine" / "backbone"))


def test_the_error_rate_is_read_under_its_older_name(tmp_path):
    (tmp_path / "greedy_aware").mkdir()
    (tmp_path / "greedy_aware" / "results.csv").write_text(HEADER + "mole,aware,all,de,error,12.5\n")
    assert History.read(tmp_path).error_rates == {"aware": {"de": 12.5}}

import argparse

import pytest
from espnet2.tasks.asr import ASRTask

from espnet_lole.bin.lole_espnet_train import RecordedASRTask


def test_espnet_s_own_model_is_not_taken_for_one_of_other_options(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(ASRTask, "main_worker", classmethod(lambda cls, args: ran.append(args.optim_conf["lr"])))
    files = [f"{part}_{kind}" for part in ("train", "valid") for kind in ("shape_file", "data_path_and_name_and_type")]
    given = dict.fromkeys(files, ()) | {"dist_rank": None, "dist_launcher": None, "resume": True, "max_epoch": 3}
    for lr in (0.1, 0.1, 0.2):
        args = argparse.Namespace(output_dir=str(tmp_path), optim_conf={"lr": lr}, **given)
        if lr == 0.2:
            with pytest.raises(ValueError, match="holds another training: optim_conf.lr: 0.1, now 0.2"):
                RecordedASRTask.main_worker(args)
        else:
            RecordedASRTask.main_worker(args)
        (tmp_path / "checkpoint.pth").touch()
    assert ran == [0.1, 0.1]

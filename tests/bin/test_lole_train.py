import pytest

from espnet_lole.bin import lole_train
from espnet_lole.tasks.lole import LoLETask
from espnet_lole.train.trainer import KDTrainer, LoLETrainer


@pytest.mark.parametrize(
    ("system", "trainer"), [("experts", LoLETrainer), ("multilingual", LoLETrainer), ("student", KDTrainer)]
)
def test_a_student_is_trained_by_the_trainer_of_distillation(system, trainer, monkeypatch):
    trained = []
    monkeypatch.setattr(LoLETask, "main", classmethod(lambda cls, args: trained.append((cls.trainer, args.system))))
    lole_train.main(["--system", system, "--backbone", "x", "--langs", "de", "--output_dir", "x"])
    assert trained == [(trainer, system)]


def test_a_mistake_in_the_configuration_is_one_line(tmp_path):
    (tmp_path / "train.yaml").write_text("max_epochs: 3\n")
    with pytest.raises(SystemExit, match=r"^error: .*train.yaml: unknown keys max_epochs; lole_train --help lists"):
        lole_train.main(["--config", str(tmp_path / "train.yaml"), "--output_dir", "x"])

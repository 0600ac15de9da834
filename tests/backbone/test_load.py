import pickle
from pathlib import Path

import pytest
from conftest import tiny_whisper

from espnet_lole.backbone.load import load_backbone


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.file,))


def test_weights_in_a_pickle_are_not_read(tmp_path):
    tiny_whisper().config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(FileNotFoundError, match="expected the weights of a Whisper as safetensors"):
        load_backbone(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_code_beside_the_weights_is_not_run(tmp_path):
    tiny_whisper().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("{", '{"auto_map": {"AutoModel": "evil.Evil"},', 1))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load_backbone(str(tmp_path))
    assert not (tmp_path / "ran").exists()

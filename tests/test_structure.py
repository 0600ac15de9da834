"""The layout's rules: who may import whom, and configurations without a key that nothing reads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from espnet2.bin import asr_inference
from espnet2.tasks.asr import ASRTask

from espnet_lole.data.corpora import load_corpus
from espnet_lole.espnet_student_model import DistillConfig
from espnet_lole.inference.system import read_decoding
from espnet_lole.lole.bank import ExpertConfig
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.tasks.lole import LoLETask, read_conf

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "whisper": set(),
    "lole": {"whisper"},
    "data": set(),
    "evaluation": {"whisper"},
    "inference": {"whisper", "lole", "data"},
    "export": {"whisper", "lole", "data", "inference"},
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_leaf_folders_import_no_espnet_and_nothing_above(folder):
    files = list((ROOT / "espnet_lole" / folder).glob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            top, _, rest = name.partition(".")
            assert top not in ("espnet", "espnet2"), file
            if top == "espnet_lole":
                assert rest.partition(".")[0] in MAY_IMPORT[folder] | {folder, "atomic_io", "config"}, (file, name)


def test_using_a_system_imports_no_espnet():
    for name in imports(ROOT / "espnet_lole" / "inference" / "speech2text.py"):
        top, _, rest = name.partition(".")
        assert top not in ("espnet", "espnet2") and (top != "espnet_lole" or rest.partition(".")[0] in MAY_IMPORT), name


def test_a_training_starts_without_the_network_data_of_phonemes():
    code = "import espnet_lole.tasks.lole, sys; print([name for name in ('nltk', 'g2p_en') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert printed.splitlines()[-1] == "[]"


PARTS = {
    "experts": {"expert_conf": ExpertConfig},
    "mole": {"fusion_conf": FusionConfig, "classifier_conf": ClassifierConfig},
    "student": {"expert_conf": ExpertConfig, "distill_conf": DistillConfig},
    "full": {},
}


OWN = [file for file in sorted(ROOT.glob("conf/**/*.yaml")) if not file.stem.endswith("_espnet")]
"""Configurations but those of ESPnet's own model."""


@pytest.mark.parametrize("file", [file for file in OWN if file.stem.startswith("train")], ids=lambda f: str(f.relative_to(ROOT)))
def test_training_configs_are_read_whole(file):
    args = LoLETask.get_parser().parse_args(["--config", str(file), "--langs", "de", "en", "--output_dir", "x"])
    written = yaml.safe_load(file.read_text())
    for name, kind in PARTS[args.system].items():
        part = read_conf(kind, getattr(args, name), name)
        for key, value in written[name].items():
            found = getattr(part, key)
            assert (list(found) if isinstance(found, tuple) else found) == value
    assert (args.optim == "expert_adamw") == (args.system == "experts")


@pytest.mark.parametrize("file", [file for file in OWN if file.stem.startswith("decode")], ids=lambda f: str(f.relative_to(ROOT)))
def test_decoding_configs_are_read_whole(file):
    seconds, search, routing = read_decoding(file)
    assert seconds > 0 and search.beam_size >= 1 and routing.candidates >= 1


@pytest.mark.parametrize("file", sorted(ROOT.glob("conf/**/train_espnet.yaml")), ids=lambda f: str(f.relative_to(ROOT)))
def test_configs_of_espnets_own_model_are_read(file, tmp_path):
    (tmp_path / "tokens.txt").write_text("<blank>\n<unk>\n<space>\na\n<sos/eos>\n")
    options = ["--config", str(file), "--token_list", str(tmp_path / "tokens.txt"), "--output_dir", "x"]
    assert ASRTask.build_model(ASRTask.get_parser().parse_args(options)).ctc_weight > 0
    conf = ROOT / "conf" / "decode_espnet.yaml"
    args = asr_inference.get_parser().parse_args(
        ["--config", str(conf), "--output_dir", "x", "--key_file", "x", "--data_path_and_name_and_type", "x,speech,sound"]
    )
    assert {name: getattr(args, name) for name in yaml.safe_load(conf.read_text())} == yaml.safe_load(conf.read_text())


@pytest.mark.parametrize("file", sorted(ROOT.glob("conf/corpora/*.yaml")), ids=lambda f: f.name)
def test_corpus_configs_are_read(file):
    _, sources = load_corpus(file)
    assert sources

"""The layout's rules: who may import whom, and configurations without a key that nothing reads."""

import ast
from pathlib import Path

import pytest
import yaml

from espnet_lole.bin.lole_inference import read_config
from espnet_lole.data.corpora import load_corpus
from espnet_lole.espnet_student_model import DistillConfig
from espnet_lole.experts.bank import ExpertConfig
from espnet_lole.fusion.layers import FusionConfig
from espnet_lole.router.classifier import ClassifierConfig
from espnet_lole.tasks.lole import LoLETask, read_conf

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "backbone": set(),
    "experts": set(),
    "data": set(),
    "score": {"backbone"},
    "router": {"backbone"},
    "fusion": {"backbone", "experts", "router"},
    "distill": {"experts"},
    "decode": {"backbone", "experts", "data", "fusion", "router"},
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
                assert rest.partition(".")[0] in MAY_IMPORT[folder] | {folder, "files"}, (file, name)


PARTS = {
    "experts": {"expert_conf": ExpertConfig},
    "mole": {"fusion_conf": FusionConfig, "classifier_conf": ClassifierConfig},
    "student": {"expert_conf": ExpertConfig, "distill_conf": DistillConfig},
}


@pytest.mark.parametrize("file", sorted(ROOT.glob("conf/**/train*.yaml")), ids=lambda f: str(f.relative_to(ROOT)))
def test_training_configs_are_read_whole(file):
    args = LoLETask.get_parser().parse_args(["--config", str(file), "--langs", "de", "en", "--output_dir", "x"])
    written = yaml.safe_load(file.read_text())
    for name, kind in PARTS[args.system].items():
        part = read_conf(kind, getattr(args, name), name)
        for key, value in written[name].items():
            found = getattr(part, key)
            assert (list(found) if isinstance(found, tuple) else found) == value
    assert (args.optim == "expert_adamw") == (args.system == "experts")


@pytest.mark.parametrize("file", sorted(ROOT.glob("conf/**/decode*.yaml")), ids=lambda f: str(f.relative_to(ROOT)))
def test_decoding_configs_are_read_whole(file):
    seconds, search, routing = read_config(file)
    assert seconds > 0 and search.beam_size >= 1 and routing.candidates >= 1


@pytest.mark.parametrize("file", sorted(ROOT.glob("conf/corpora/*.yaml")), ids=lambda f: f.name)
def test_corpus_configs_are_read(file):
    _, sources = load_corpus(file)
    assert sources

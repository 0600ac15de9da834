"""The layout's rules: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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

"""The layout's rules: who may import whom, and that no library is patched."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "espnet_lole"
FILES = sorted(PACKAGE.rglob("*.py"))
ANY_PART = {"config", "atomic_io", "languages", "ownership"}
"""Modules that every folder may import."""
MAY_IMPORT = {
    "whisper": {"compat"},
    "lole": {"whisper", "compat", "systems"},
    "data": {"whisper"},
    "evaluation": {"whisper", "data", "systems"},
    "inference": {"whisper", "lole", "data", "compat", "systems"},
    "export": {"whisper", "lole", "data", "evaluation", "inference", "compat", "systems"},
}
"""Folder that works without ESPnet -> what it may import of the package, besides itself."""
WITH_ESPNET = {"espnet_model.py", "estimate.py", "tasks", "train", "bin", "evaluation/normalize.py"}
"""What may import espnet2: the models, their training, the commands of the recipe, and ESPnet's cleaners."""


def imports(file: Path) -> set[str]:
    """Return the names that a file imports, at its top or in functions, but not for annotations alone."""
    names, tree = set(), ast.parse(file.read_text())
    for block in [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]:
        block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_lies_below_it(folder):
    used = {
        name.split(".")[1]
        for file in (PACKAGE / folder).glob("*.py")
        for name in imports(file)
        if "espnet_lole." in name
    }
    assert used <= MAY_IMPORT[folder] | ANY_PART | {folder}


def test_no_modules_import_each_other_in_a_circle():
    modules = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in FILES}
    graph = {}
    for module, file in modules.items():
        names = [name for name in imports(file) if name.startswith("espnet_lole.")]
        graph[module] = {name if name in modules else name.rpartition(".")[0] for name in names}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(modules)  # CycleError names a circle


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_espnet_is_imported_where_it_trains_alone_and_openai_whisper_for_espnets_own_alone(file):
    tops = {name.split(".")[0] for name in imports(file)}
    path = file.relative_to(PACKAGE)
    assert "espnet" not in tops
    assert "whisper" not in tops or str(path) == "train/espnet_whisper.py"  # ESPnet's own Whisper needs a fork of it
    if "espnet2" in tops:
        assert {path.parts[0], str(path)} & WITH_ESPNET


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_no_library_is_patched(file):
    """No mock, no module replaced, and no attribute set on what was imported."""
    tree = ast.parse(file.read_text())
    assert not any(name.startswith(("unittest", "mock")) for name in imports(file))
    modules = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
        for target in targets:
            assert "sys.modules" not in ast.unparse(target)
            while isinstance(target, ast.Attribute | ast.Subscript):
                target = target.value
                assert not (isinstance(target, ast.Name) and target.id in modules), f"line {node.lineno}"

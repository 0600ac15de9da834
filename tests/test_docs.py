"""The documents agree with the code: links, paths, commands, messages, and the reference of configuration keys."""

import ast
import json
import re
import shlex
import shutil
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from espnet2.tasks.abs_task import AbsTask

from espnet_lole.cli.main import get_parser
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.speech_detector import VadConfig
from espnet_lole.lole.experts import ExpertConfig
from espnet_lole.lole.kd import KDConfig
from espnet_lole.lole.language_classifier import ClassifierConfig
from espnet_lole.lole.mole import FusionConfig, RoutingConfig
from espnet_lole.systems import SCORED_DECODING
from espnet_lole.tasks.lole import LoLETask

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs2" / "lole" / "asr1"
PLACES = ("*.md", "docs/*.md", "benchmarks/*.md", "benchmarks/gpu/*.md", "models/*/*.md")
DOCUMENTS = [file for places in PLACES for file in ROOT.glob(places)]
DOCUMENTS += [RECIPE / "README.md"]
MADE_BY_READERS = ("conf/corpora/mine",)


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def headings(file: Path) -> set[str]:
    """Anchors that GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def commands(file: Path) -> list[list[str]]:
    """Words of the commands in the blocks of a document that name no language."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", file.read_text(), re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in found if not language]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("file", DOCUMENTS, ids=name)
def test_links_lead_to_files_and_headings(file):
    for link in re.findall(r"\]\(([^)]+)\)", file.read_text()):
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        assert link.startswith("http") or target.exists(), link
        assert not anchor or link.startswith("http") or anchor in headings(target), link


@pytest.mark.parametrize("file", DOCUMENTS, ids=name)
def test_paths_that_a_document_names_exist(file):
    folders = "espnet_lole|tests|conf|studies|examples|benchmarks|local|egs2|models|tools"
    for path in re.findall(rf"`(?:python )?((?:{folders})/[\w./-]+)", file.read_text()):
        if not path.startswith(MADE_BY_READERS) and "/exp/" not in path and "/dump/" not in path:
            assert (ROOT / path).exists() or list((ROOT / path).parent.glob(f"{Path(path).name}*")), path


@pytest.mark.parametrize("file", DOCUMENTS, ids=name)
def test_commands_have_targets_and_options_that_exist(file):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", file.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for program, *options in commands(file):
        if program == "lole" and options != ["--help"]:
            get_parser().parse_args(options[: options.index(">")] if ">" in options else options)
        script = next((word for word in (program, *options[:1]) if word.endswith((".sh", ".py"))), None)
        if script is not None:
            text = ((RECIPE if script.startswith("./") else ROOT) / script).read_text()
            text += (RECIPE / "lole.sh").read_text() if script == "./run.sh" else ""
            for option in (word[2:] for word in options if re.fullmatch(r"--\w+", word) and word != "--help"):
                assert re.search(rf'^{option}=|"--{option}"', text, re.MULTILINE), (script, option)


def test_messages_in_troubleshooting_are_those_of_the_code():
    files = [
        *ROOT.glob("espnet_lole/**/*.py"),
        *ROOT.glob("examples/*.py"),
        *RECIPE.glob("*.sh"),
        *RECIPE.glob("lole_utils/*.sh"),
    ]
    code = re.sub(r'"\s+f?"', "", " ".join(file.read_text() for file in files))  # strings that go over several lines
    rows = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line.startswith("| `")]
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(quoted) > 25
    for message in quoted:
        assert message in code, message


def table(heading: str) -> dict[str, object]:
    """Key -> default of the tables under a heading of the reference."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    section = re.search(rf"^#+ {heading}$(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)[1]
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`|required) \|", section, re.MULTILINE)
    return {key: yaml.safe_load(default) if default else MISSING for key, default in rows}


def defaults(*kinds: type) -> dict[str, object]:
    values = {}
    for field in (field for kind in kinds for field in fields(kind)):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        values[field.name] = list(default) if isinstance(default, tuple) else default
    return values


def test_the_reference_has_every_key_of_the_parts_with_its_default():
    assert table("Experts") == defaults(ExpertConfig)
    assert table("MoLE") == defaults(FusionConfig, ClassifierConfig)
    assert table("Student") == defaults(KDConfig)
    assert table("Decoding") == defaults(SearchConfig, RoutingConfig) | {
        "batch_seconds": 160.0,
        "routing": {},
        "vad": {},
    }
    assert table("Speech detection") == defaults(VadConfig)


def test_the_reference_has_every_option_of_the_task_with_its_default():
    args = vars(LoLETask.parse_args(["--output_dir", "x", "--system", "mole"]))
    espnet = {action.dest for action in AbsTask.get_parser()._actions} | {"required"}
    own = {key: value for key, value in args.items() if key not in espnet}
    assert table("The task") == own | {"system": "experts", "model_conf": {}}
    shared = table("Training") | {"best_model_criterion": [["valid", "loss", "min"]]}
    assert shared == {key: args[key] for key in shared}


def test_the_paths_in_the_guided_tour_name_what_they_are_said_to_have():
    rows = re.findall(r"^\| [^|]+ \| `([\w./]+)`: ([^|;]+)[|;]", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(rows) >= 12
    for path, names in rows:
        text = (ROOT / path).read_text()
        nodes = ast.walk(ast.parse(text)) if path.endswith(".py") else ()
        defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for word in re.findall(r"`(\w+)", names):
            assert word in defined or re.search(rf"^{word}\b", text, re.MULTILINE), (path, word)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(recipe, tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.flac", random.normal(0, 0.1, 32_000), 16_000)
    model = shutil.copytree(recipe, tmp_path / "recipe") / "exp" / "mole"
    (model / SCORED_DECODING).write_text("vad: {threshold: 0}\n")  # the audio is noise
    monkeypatch.setenv("LOLE_MODEL", str(model))
    monkeypatch.setenv("LOLE_AUDIO", str(tmp_path))
    monkeypatch.chdir(ROOT / "examples")
    names: dict = {}
    for cell in json.loads((ROOT / "examples" / "transcribe.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "-->" in capsys.readouterr().out
    assert len(names["results"]) == 6 and len(names["whole"].segments) >= 2

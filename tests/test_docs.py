import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]


def test_links_lead_somewhere():
    for file in [*ROOT.glob("docs/*.md"), ROOT / "README.md"]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text()):
            assert link.startswith("http") or (file.parent / link).exists(), (file, link)


def test_messages_in_troubleshooting_are_those_of_the_code():
    code = " ".join(file.read_text() for top in ("espnet_lole", "examples") for file in (ROOT / top).rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", code)  # strings that go over several lines
    rows = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line.startswith("| `")]
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(quoted) > 25
    for message in quoted:
        assert message in code, message


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(recipe, tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.flac", random.normal(0, 0.1, 32_000), 16_000)
    monkeypatch.setenv("LOLE_MODEL", str(recipe / "exp" / "mole"))
    monkeypatch.setenv("LOLE_AUDIO", str(tmp_path))
    monkeypatch.chdir(ROOT / "examples")
    names: dict = {}
    for cell in json.loads((ROOT / "examples" / "transcribe.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "-->" in capsys.readouterr().out
    assert len(names["results"]) == 6 and len(names["whole"].segments) >= 2

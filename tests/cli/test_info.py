"""`lole info`: the metadata of a system as text and as JSON."""

import json

from conftest import tiny_whisper
from torch import nn

from espnet_lole.cli.main import main


def test_text_describes_the_system(recipe, capsys):
    assert main(["info", str(recipe / "exp" / "mole")]) == 0
    out = capsys.readouterr().out
    for part in ("mole", "de en fr zh", "adapter fr        rank 4, ", "encoder layers 1 to 2"):
        assert part in out


def test_json_has_ranks_and_parameters(recipe, capsys):
    assert main(["info", str(recipe / "exp" / "student"), "--json"]) == 0
    metadata = json.loads(capsys.readouterr().out)
    assert metadata["system"] == "student" and metadata["ranks"] == {"student": 6}
    linears = [
        module
        for name, module in tiny_whisper().named_modules()
        if isinstance(module, nn.Linear) and "proj_out" != name
    ]
    size = sum(6 * (layer.in_features + layer.out_features) for layer in linears)
    assert metadata["parameters"] == {"student": size}

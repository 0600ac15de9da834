"""Uploads: what is refused before any network, and what reaches the hub."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import create_autospec

import huggingface_hub
import pytest

from espnet_lole.cli.main import main


@pytest.fixture
def hub(monkeypatch):
    """The hub's client with its signatures, and a user who is logged in."""
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.upload_folder.return_value = SimpleNamespace(commit_url="https://hub/commit")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return api


@pytest.fixture
def export(recipe, tmp_path):
    assert main(["export", str(recipe / "exp" / "mole"), str(tmp_path / "my_mole")]) == 0
    return tmp_path / "my_mole"


def test_a_complete_export_is_uploaded_without_the_marker(export, hub, capsys):
    assert main(["upload", str(export), "me/my_mole", "--private"]) == 0
    hub.create_repo.assert_called_once_with("me/my_mole", private=True, exist_ok=True)
    hub.upload_folder.assert_called_once_with(
        repo_id="me/my_mole", folder_path=export, ignore_patterns=[".espnet_lole"]
    )
    assert "https://hub/commit" in capsys.readouterr().out


def test_a_dry_run_lists_the_files_and_reaches_for_nothing(export, hub, capsys):
    assert main(["upload", str(export), "me/my_mole", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert not hub.mock_calls and "my_mole is complete; nothing was uploaded" in printed
    assert all(name in printed for name in ("README.md", "config.yaml", "mole.safetensors", "backbone/config.json"))


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


BREAK = {
    "README.md": lambda file: file.unlink(),
    "config.yaml": lambda file: file.unlink(),
    "mole.safetensors": cut,
    "backbone/model.safetensors": cut,
    "adapters/de/adapter_model.safetensors": lambda file: file.unlink(),
}


@pytest.mark.parametrize("part", BREAK)
def test_an_incomplete_folder_is_not_uploaded(export, hub, capsys, part):
    BREAK[part](export / part)
    assert main(["upload", str(export), "me/my_mole"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ") and not hub.mock_calls


def test_mistakes_are_told_before_any_network(export, recipe, hub, monkeypatch, capsys):
    for folder, repo, message in (
        (export, "my_mole", "named <user>/<model>"),
        (export, "me/my mole", "Repo id"),
        (recipe / "exp" / "mole", "me/my_mole", "has no model card"),
    ):
        assert main(["upload", str(folder), repo]) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["upload", str(export), "me/my_mole"]) == 1
    assert "nobody is logged in" in capsys.readouterr().err and not hub.mock_calls


def test_an_upload_that_the_hub_refuses_is_one_line(export, hub, capsys):
    hub.create_repo.side_effect = RuntimeError("403 Forbidden")
    assert main(["upload", str(export), "me/my_mole"]) == 1
    assert "is complete, but was not uploaded to me/my_mole: 403 Forbidden" in capsys.readouterr().err

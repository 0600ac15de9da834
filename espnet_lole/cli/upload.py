"""Upload an export to the Hugging Face hub, after a check of the folder that needs no network.

Examples:
  lole upload my_mole user/my_mole --dry_run
  lole upload my_mole user/my_mole --private
"""

from __future__ import annotations

import argparse
from pathlib import Path

from espnet_lole.ownership import MARKER

CARD = "README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder written by lole export")
    parser.add_argument("repo", metavar="USER/MODEL", help="repository on the hub; it is made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--dry_run", action="store_true", help="check the folder and list its files; upload nothing")


def run(args: argparse.Namespace) -> None:
    """Check the folder, then upload it.

    Raises:
        FileNotFoundError: a part of the export is missing.
        ValueError: the folder is no complete export, the name of the repository is malformed, or nobody is logged in.
        OSError: the hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(args.repo)
    if "/" not in args.repo:
        raise ValueError(f"the repository is named <user>/<model>, got {args.repo!r}")
    check_export(args.folder)
    if args.dry_run:
        for file in sorted(file for file in args.folder.rglob("*") if file.is_file() and file.name != MARKER):
            print(f"{file.stat().st_size / 1e6:10.2f} MB  {file.relative_to(args.folder)}")
        print(f"{args.folder} is complete; nothing was uploaded")
        return
    if get_token() is None:
        raise ValueError(f"{args.folder} is complete, but nobody is logged in: run 'hf auth login', or set HF_TOKEN")
    print(upload(args.folder, args.repo, args.private))


def upload(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder in one commit, and return its address.

    Args:
        folder: the export.
        repo: ``<user>/<model>``; it is made if it does not exist.
        private: nobody else may read it.

    Raises:
        OSError: the hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=[MARKER]).commit_url
    except Exception as error:  # its HTTP client, and thus the errors of a network, differ from version to version
        raise OSError(f"{folder} is complete, but was not uploaded to {repo}: {error}") from error


def check_export(folder: Path) -> None:
    """Check that a folder has a model card and a system that loads.

    Raises:
        FileNotFoundError: a part of the system is missing.
        ValueError: there is no card, or the parts do not fit together.
    """
    from huggingface_hub import ModelCard

    from espnet_lole.inference.load import find_system, load_transcriber
    from espnet_lole.inference.search import SearchConfig
    from espnet_lole.lole.mole import RoutingConfig

    system = find_system(folder)
    if not (folder / CARD).is_file() or not ModelCard.load(folder / CARD).data.license:
        raise ValueError(f"{folder} has no model card ({CARD} with a licence): write the folder with lole export")
    load_transcriber(system, "cpu", SearchConfig(), RoutingConfig())

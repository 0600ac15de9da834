"""Serve a web page: record or upload, read the text and the language, compare systems.

Examples:
  lole demo --model exp/lole_train_mole_raw_lole_mini_seed0
  lole demo --model exp/lole_train_mole_raw_lole_mini_seed0 --model exp/lole_train_student_raw_lole_mini_seed0 --port 8000
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--model", type=Path, action="append", required=True, help="folder of a trained system; repeat to compare several"
    )
    parser.add_argument("--config", type=Path, help="YAML of the decoding, as conf/decode.yaml")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--max_mb", type=int, default=50, help="size of an upload; default: 50")
    parser.add_argument("--max_minutes", type=float, default=10.0, help="length of the audio; default: 10")
    parser.add_argument("--queue", type=int, default=20, help="requests that wait; those behind are refused; default: 20")


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted.

    Raises:
        ValueError: gradio is not installed, or a folder holds no system.
        FileNotFoundError: a system is not there.
    """
    names = [model.name for model in args.model]
    if len(set(names)) < len(names):
        raise ValueError(f"expected folders of different names, got {names}: copy or link one")
    from espnet_lole import Speech2Text

    try:
        from web import build_page, serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("expected gradio for the web page, which is not installed: pip install 'espnet_lole[web]'") from error
    systems = {model.name: Speech2Text.from_pretrained(model, device=args.device, config=args.config) for model in args.model}
    serve(build_page(systems, args.max_minutes), args.host, args.port, args.max_mb, args.queue)

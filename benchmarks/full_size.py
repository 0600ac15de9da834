#!/usr/bin/env python3
"""A training step of every system on a Whisper of published size with random weights: time and memory, on this machine.

Each system runs in a process of its own, so that the peak is its own: python benchmarks/full_size.py --size medium
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import WhisperForConditionalGeneration

from espnet_lole.espnet_model import AbsLoLEModel, ESPnetExpertModel
from espnet_lole.espnet_mole_model import ESPnetMoLEModel
from espnet_lole.espnet_student_model import STUDENT, DistillConfig, ESPnetStudentModel
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import PromptTranscriber
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.experts import hold_routes
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.lole.mole import MoLE
from espnet_lole.train.optimizer import ExpertAdamW
from espnet_lole.whisper.checkpoint import PRECISIONS, precision
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.sizes import SIZES
from espnet_lole.whisper.tokenizer import WhisperTokens

CODES = ("de", "en", "es", "fr", "it", "pt", "ru", "zh")
SYSTEMS = ("experts", "mole", "student", "decode")
LR = 1e-4


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", default="medium", choices=[name.removeprefix("openai/whisper-") for name in SIZES])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--utterances", type=int, default=2, help="of a batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="of an utterance")
    parser.add_argument("--num_languages", type=int, default=8, choices=range(1, 9), metavar="1..8")
    parser.add_argument("--steps", type=int, default=1, help="measured, after one that is not if there are several")
    return parser


def build(system: str, args: argparse.Namespace) -> AbsLoLEModel | PromptTranscriber:
    """The system on random weights, with the paper's ranks."""
    torch.manual_seed(0)
    config = SIZES[f"openai/whisper-{args.size}"].config()
    backbone = Backbone(WhisperForConditionalGeneration(config), "short", precision(args.precision)).requires_grad_(
        False
    )
    tokens, codes = WhisperTokens(config.vocab_size), CODES[: args.num_languages]
    if system == "decode":
        return PromptTranscriber(backbone.to(args.device).eval(), tokens, None, codes, SearchConfig(maxlenratio=0.1))
    bank = ExpertBank(backbone.model, codes, ExpertConfig(rank=64))
    if system == "experts":
        model = ESPnetExpertModel(backbone, bank, tokens)
    elif system == "mole":
        mole = MoLE(backbone, bank, FusionConfig(config.encoder_layers * 5 // 6), ClassifierConfig(hidden=512))
        model = ESPnetMoLEModel(mole, tokens, 0.5)
    else:
        student = ExpertBank(backbone.model, [STUDENT], ExpertConfig(rank=256, alpha=512.0))
        model = ESPnetStudentModel(backbone, codes, bank, student, tokens, DistillConfig(), 1)
    backbone.recompute = lambda: hold_routes(model)
    return model.to(args.device).train()


def make_step(system: str, args: argparse.Namespace) -> Callable[[], object]:
    """A function that trains one step, or decodes one batch."""
    model, samples = build(system, args), int(16000 * args.seconds)
    speech = torch.randn(args.utterances, samples, device=args.device) * 0.1
    lengths = torch.full((args.utterances,), samples, device=args.device)
    langs = torch.arange(args.utterances, device=args.device) % args.num_languages
    if system == "decode":
        return lambda: model(list(speech), [CODES[i] for i in langs])
    text = torch.randint(0, 50000, (args.utterances, int(4 * args.seconds)), device=args.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = (ExpertAdamW if system == "experts" else torch.optim.AdamW)(trained, lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        text_lengths = torch.full_like(lengths, text.shape[1])
        loss, *_ = model(
            speech=speech, speech_lengths=lengths, text=text, text_lengths=text_lengths, lang=langs[:, None]
        )
        loss.backward()
        optimizer.step()
        if args.device == "cuda":
            torch.cuda.synchronize()

    return step


def measure(system: str, args: argparse.Namespace) -> str:
    """A row of the table: seconds of a step, and the most memory, in GiB, that the process or the GPU held."""
    step = make_step(system, args)
    if args.steps > 1:
        step()
    begin = time.perf_counter()
    for _ in range(args.steps):
        step()
    seconds = (time.perf_counter() - begin) / args.steps
    peak = (
        torch.cuda.max_memory_allocated()
        if args.device == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    audio = args.utterances * args.seconds
    return f"{system:8} {seconds:8.2f} s a step {audio / seconds:8.2f} s of audio a second {peak / 2**30:6.2f} GiB"


def main(cmd: list[str] | None = None) -> None:
    """Measure each system in a process of its own."""
    args = get_parser().parse_args(cmd)
    if len(args.systems) == 1:
        print(measure(args.systems[0], args), flush=True)
        return
    rest = sys.argv[1:] if cmd is None else cmd
    for system in args.systems:
        subprocess.run([sys.executable, str(Path(__file__)), *rest, "--systems", system], check=True)


if __name__ == "__main__":
    main()

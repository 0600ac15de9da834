"""What do hundreds of experts cost? Experts on disk, read on demand, a bounded number in memory.

    python studies/bank.py --experts 128 256 512 --resident 8 32

A Whisper of the size of small, with random weights, and random experts in bfloat16. Utterances come one by one; their
languages are drawn with probabilities proportional to 1 / place (Zipf). Measures the memory of the process, and the
time of an utterance's encoder pass where its expert is in memory and where it has to be read (from the system's page
cache, if the files fit there). Each measurement is a process of its own. Writes exp/study_memory/bank.md in the
recipe's folder.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, quantiles

import torch
from safetensors.torch import save_file
from study import RECIPE, write_lines
from transformers import WhisperForConditionalGeneration

from espnet_lole.lole.adapters import WEIGHTS, save_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.cache import ExpertCache
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.sizes import SIZES


def make_model(layers: int) -> WhisperForConditionalGeneration:
    """The random Whisper, with as many layers on either side."""
    torch.manual_seed(0)
    size = SIZES["openai/whisper-small"]._replace(encoder_layers=layers, decoder_layers=layers)
    return WhisperForConditionalGeneration(size.config()).eval()


def write_experts(folder: Path, number: int, rank: int, layers: int) -> float:
    """Write experts that the folder lacks, and return the MB of one."""
    bank = ExpertBank(make_model(layers), ["first"], ExpertConfig(rank, alpha=2.0 * rank))
    save_expert(bank, "first", folder / "first", "random")
    shapes = {}
    for name, layer in bank.layers.items():
        shapes[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.shape[1:]
        shapes[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.shape[1:]
    config = next((folder / "first").glob("*.json")).read_text()
    (folder / "first" / WEIGHTS).unlink()
    for i in range(number):
        made = folder / f"lang{i:03d}"
        if not (made / WEIGHTS).exists():
            made.mkdir()
            (made / "adapter_config.json").write_text(config)
            save_file({key: 0.01 * torch.randn(*shape).bfloat16() for key, shape in shapes.items()}, made / WEIGHTS)
    return (folder / "lang000" / WEIGHTS).stat().st_size / 1e6


def measure(folder: Path, number: int, resident: int, utterances: int, layers: int) -> dict[str, float]:
    """Serve utterances of 5 s, each in a language drawn by Zipf's law, in this process."""
    backbone = Backbone(make_model(layers)).eval()
    cache = ExpertCache(backbone.model, folder, resident)
    rng = random.Random(0)
    langs = rng.choices(cache.languages[:number], [1 / (i + 1) for i in range(number)], k=utterances)
    speech, length = torch.randn(1, 80000) * 0.1, torch.tensor([80000])
    times: dict[bool, list[float]] = {False: [], True: []}
    with torch.no_grad():
        for _ in range(3):  # the first passes are slower
            backbone.encode(speech, length)
        for lang in langs:
            before, started = cache.reads, time.perf_counter()
            with cache.routed(torch.tensor(cache.indices([lang]))):
                backbone.encode(speech, length)
            times[cache.reads > before].append(1000 * (time.perf_counter() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    worst = quantiles(times[True], n=20)[-1] if len(times[True]) > 1 else float("nan")
    hits = {"share": 100 * len(times[False]) / utterances, "hit": fmean(times[False] or [float("nan")])}
    return hits | {"miss": fmean(times[True] or [float("nan")]), "worst": worst, "memory": peak}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--resident", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12, help="of encoder and decoder")
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="of one measurement, which is printed")
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(args.folder, args.experts[0], args.resident[0], args.utterances, args.layers)))
        return
    lines = []
    with tempfile.TemporaryDirectory() as made:
        for number in args.experts:
            size = write_experts(Path(made), number, args.rank, args.layers)
            for resident in args.resident:
                own = [
                    "--folder",
                    made,
                    "--experts",
                    str(number),
                    "--resident",
                    str(resident),
                    "--layers",
                    str(args.layers),
                ]
                command = [sys.executable, __file__, *own, "--utterances", str(args.utterances)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                m = json.loads(done.stdout.splitlines()[-1])
                times = [f"{m[key]:.0f}" for key in ("hit", "miss", "worst")]
                disk = f"{number * size / 1000:.2f}"
                lines.append([str(number), disk, str(resident), f"{m['memory']:.2f}", f"{m['share']:.0f} %", *times])
    head = ["experts", "GB on disk", "in memory", "peak memory, GB", "found in memory", "ms an utterance, found"]
    head += ["ms, read", "ms, read, 95 % of them below"]
    print(write_lines(head, lines, RECIPE / "exp" / "study_memory" / "bank.md"))


if __name__ == "__main__":
    main()

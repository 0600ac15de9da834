"""What do hundreds of experts cost? Experts on disk, read on demand, a bounded number in memory.

    python studies/bank.py --experts 128 256 512 --max_loaded_experts 8 32

A Whisper of the size of small, with random weights, and random experts in bfloat16. Utterances come one by one; their
languages are drawn with probabilities proportional to 1 / place (Zipf). Measures the memory of the process, and the
time of an utterance's encoder pass if its expert is in memory and if it has to be read (from the system's page cache,
if the files fit there). Each measurement is a process of its own. Writes exp/study_memory/bank.md in the recipe's
folder.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, quantiles

import torch
from safetensors.torch import load_file, save_file
from study import RECIPE, write_lines
from transformers import WhisperForConditionalGeneration

from espnet_lole.inference.expert_cache import ExpertCache
from espnet_lole.lole.adapters import CONFIG, WEIGHTS, save_adapter
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.sizes import SIZES


def make_whisper(layers: int) -> Whisper:
    """Make the random Whisper, with as many layers in encoder and decoder."""
    torch.manual_seed(0)
    size = SIZES["openai/whisper-small"]._replace(encoder_layers=layers, decoder_layers=layers)
    return Whisper(WhisperForConditionalGeneration(size.config())).eval()


def write_experts(folder: Path, number: int, rank: int, layers: int) -> float:
    """Write the experts that the folder lacks, and return the MB of one."""
    first = folder / "first"
    save_adapter(LoRAExperts(make_whisper(layers), ["first"], ExpertConfig(rank, 2.0 * rank)), "first", first, "random")
    shapes = {key: value.shape for key, value in load_file(first / WEIGHTS).items()}
    config = (first / CONFIG).read_text()
    shutil.rmtree(first)
    for i in range(number):
        made = folder / f"lang{i:03d}"
        if not (made / WEIGHTS).exists():
            made.mkdir()
            (made / CONFIG).write_text(config)
            save_file({key: 0.01 * torch.randn(shape).bfloat16() for key, shape in shapes.items()}, made / WEIGHTS)
    return (folder / "lang000" / WEIGHTS).stat().st_size / 1e6


@torch.no_grad()
def measure(folder: Path, number: int, capacity: int, utterances: int, layers: int) -> dict[str, float]:
    """Serve utterances of 5 s, each in a language drawn by Zipf's law, in this process."""
    whisper = make_whisper(layers)
    cache = ExpertCache(whisper, folder, capacity)
    langs = random.Random(0).choices(cache.languages[:number], [1 / (i + 1) for i in range(number)], k=utterances)
    speech, length = torch.randn(1, 80000) * 0.1, torch.tensor([80000])
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(3):  # the first passes are slower
        whisper.encode(speech, length)
    for lang in langs:
        before, started = cache.reads, time.perf_counter()
        with cache.activate(cache.indices([lang])):
            whisper.encode(speech, length)
        times[cache.reads > before].append(1000 * (time.perf_counter() - started))
    loaded, read = times[False] or [float("nan")], times[True] or [float("nan")]
    return {
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "loaded_share": 100 * len(times[False]) / utterances,
        "loaded": fmean(loaded),
        "read": fmean(read),
        "slowest": quantiles(read, n=20)[-1] if len(read) > 1 else float("nan"),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--max_loaded_experts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12, help="of encoder and decoder")
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="experts of one measurement, which is printed")
    args = parser.parse_args()
    if args.folder:
        capacity = args.max_loaded_experts[0]
        print(json.dumps(measure(args.folder, args.experts[0], capacity, args.utterances, args.layers)))
        return
    lines = []
    with tempfile.TemporaryDirectory() as made:
        for number in args.experts:
            disk = f"{number * write_experts(Path(made), number, args.rank, args.layers) / 1000:.2f}"
            for capacity in args.max_loaded_experts:
                command = [sys.executable, __file__, "--folder", made, "--experts", str(number)]
                command += ["--max_loaded_experts", str(capacity), "--layers", str(args.layers)]
                command += ["--utterances", str(args.utterances)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                m = json.loads(done.stdout.splitlines()[-1])
                times = [f"{m[key]:.0f}" for key in ("loaded", "read", "slowest")]
                figures = [f"{m['memory']:.2f}", f"{m['loaded_share']:.0f} %", *times]
                lines.append([str(number), disk, str(capacity), *figures])
    head = ["experts", "GB on disk", "in memory", "peak memory, GB", "already in memory", "ms per utterance then"]
    head += ["ms if read from disk", "95th percentile of these, ms"]
    print(write_lines(head, lines, RECIPE / "exp" / "study_memory" / "bank.md"))


if __name__ == "__main__":
    main()

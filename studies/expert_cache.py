"""What do hundreds of experts cost? Experts on disk, read on demand, a bounded number in memory.

    python studies/expert_cache.py --experts 128 256 512 --max_loaded_experts 8 32

A Whisper of the size of small and experts in bfloat16, all with random weights. Utterances come one by one; their
languages are drawn with probabilities proportional to 1 / place (Zipf). Measures the memory of the process, and the
time of an utterance's encoder pass where its expert is in memory and where it is read (from the system's page cache, if
the files fit there). Each measurement is a process of its own. Writes exp/study_memory/expert_cache.md in the recipe's
folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean, quantiles

import torch
from study import RECIPE, write_lines
from transformers import WhisperForConditionalGeneration

from espnet_lole.inference.expert_cache import ExpertCache
from espnet_lole.lole.adapters import save_adapter
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts
from espnet_lole.lole.peft_files import WEIGHTS
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.sizes import SIZES

NAN = float("nan")


def make_whisper(layers: int) -> Whisper:
    """Make the random Whisper, with as many layers in encoder and decoder."""
    torch.manual_seed(0)
    size = SIZES["openai/whisper-small"]._replace(encoder_layers=layers, decoder_layers=layers)
    return Whisper(WhisperForConditionalGeneration(size.config())).eval()


def write_experts(folder: Path, number: int, rank: int, layers: int) -> float:
    """Write experts that the folder lacks, and return the MB of one."""
    experts = LoRAExperts(make_whisper(layers), ["random"], ExpertConfig(rank, alpha=2.0 * rank)).cast_(torch.bfloat16)
    for made in (folder / f"lang{i:03d}" for i in range(number)):
        if not made.exists():
            for factor in experts.parameters_of_experts()["random"]:
                torch.nn.init.normal_(factor, std=0.01)
            save_adapter(experts, "random", made, "random")
    return (folder / "lang000" / WEIGHTS).stat().st_size / 1e6


@torch.no_grad()
def measure(folder: Path, number: int, capacity: int, utterances: int, layers: int) -> dict[str, float]:
    """Encode utterances of 5 s, each in a language drawn by Zipf's law, in this process."""
    cache = ExpertCache(make_whisper(layers), folder, capacity)
    langs = random.Random(0).choices(cache.languages[:number], [1 / (i + 1) for i in range(number)], k=utterances)
    speech, length = torch.randn(1, 80000) * 0.1, torch.tensor([80000])
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(3):  # the first passes are slower
        cache.whisper.encode(speech, length)
    for lang in langs:
        before, started = cache.reads, time.perf_counter()
        with cache.activate(cache.indices([lang])):
            cache.whisper.encode(speech, length)
        times[cache.reads > before].append(1000 * (time.perf_counter() - started))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "peak memory, GB": int(status["VmHWM"].split()[0]) * 1024 / 1e9,
        "found in memory, %": 100 * len(times[False]) / utterances,
        "ms an utterance, in memory": fmean(times[False] or [NAN]),
        "ms, read": fmean(times[True] or [NAN]),
        "ms, read, 95 % of them below": quantiles(times[True], n=20)[-1] if len(times[True]) > 1 else NAN,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--max_loaded_experts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12, help="of encoder and decoder")
    parser.add_argument("--utterances", type=int, default=200)
    args = parser.parse_args()
    spawn, lines = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for number in args.experts:
            size = pool.submit(write_experts, Path(folder), number, args.rank, args.layers).result()
            for capacity in args.max_loaded_experts:
                done = pool.submit(measure, Path(folder), number, capacity, args.utterances, args.layers).result()
                figures = [f"{v:.2f}" if "GB" in name else f"{v:.0f}" for name, v in done.items()]
                lines.append([str(number), f"{number * size / 1000:.2f}", str(capacity), *figures])
    head = ["experts", "GB on disk", "in memory", *done]
    print(write_lines(head, lines, RECIPE / "exp" / "study_memory" / "expert_cache.md"))


if __name__ == "__main__":
    main()

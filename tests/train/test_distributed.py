"""Two processes on a CPU train as one would with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import test_espnet_model
import test_espnet_mole_model
import test_espnet_student_model
import torch
from conftest import LANGS, TEXTS, make_batch, tiny_whisper
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.torch_utils.recursive_op import recursive_average

from espnet_lole.data.kaldi import write_table
from espnet_lole.experts.layers import hold_routes

pytestmark = pytest.mark.slow
SYSTEMS = {
    "experts": test_espnet_model.make_model,
    "mole": test_espnet_mole_model.make_model,
    "student": test_espnet_student_model.make_model,
}
ROOT = Path(__file__).resolve().parents[2]
ROWS = [0, 1, 2, 3, 1]
"""de en de zh en: shared by two processes, zh and en are with one alone; fr is with none."""


def step(model, batch, ranks: int) -> dict:
    """Forward and backward as ESPnet's trainer does them: its weighting, and DDP's mean of the gradients."""
    loss, stats, weight = force_gatherable(model(**batch), "cpu")
    if ranks > 1:
        loss = (loss * weight).sum()
        stats, weight = recursive_average(stats, weight, True)
        loss = ranks * loss / weight
    loss.sum().backward()
    grads = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {"grads": grads, "stats": {name: value.reshape(()) for name, value in stats.items()}, "weight": float(weight)}


def work(rank: int, folder: str, speech) -> None:
    """One of two processes: every system, with and without layers that are computed again."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    for name, build in SYSTEMS.items():
        for again in (False, True):
            model = build()
            batch = make_batch(model, ROWS[rank::2], speech)
            model.backbone.recompute = (lambda model=model: hold_routes(model)) if again else None
            parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=again)
            torch.save(step(parallel, batch, 2), f"{folder}/{name}{again}{rank}.pt")
    torch.distributed.destroy_process_group()


def test_losses_gradients_and_figures_are_those_of_one_process(tmp_path, speech):
    torch.multiprocessing.spawn(work, (str(tmp_path), speech), nprocs=2)
    for name, build in SYSTEMS.items():
        model = build()
        whole = step(model, make_batch(model, ROWS, speech), 1)
        for again in (False, True):
            ranks = [torch.load(tmp_path / f"{name}{again}{rank}.pt") for rank in (0, 1)]
            for part in ranks:
                assert part["weight"] == whole["weight"] == len(ROWS)
                for key, grad in whole["grads"].items():
                    torch.testing.assert_close(part["grads"][key], grad, atol=1e-3, rtol=1e-3)
                assert part["stats"].keys() == whole["stats"].keys()
                for key, value in whole["stats"].items():
                    torch.testing.assert_close(part["stats"][key], value, atol=1e-4, rtol=1e-4, equal_nan=True)


def make_data(folder: Path, speech) -> list[str]:
    """Writes the utterances four times, and returns the options that name them."""
    wav, text, lang, shape = {}, {}, {}, {}
    for copy in range(4):
        for row, samples in enumerate(speech[1].tolist()):
            utt = f"u{copy}{row}"
            soundfile.write(folder / f"{utt}.wav", speech[0][row, :samples].numpy(), 16000)
            wav[utt], text[utt], lang[utt], shape[utt] = folder / f"{utt}.wav", TEXTS[row], LANGS[row], samples
    for name, table in (("wav.scp", wav), ("text", text), ("utt2lang", lang), ("shape", shape)):
        write_table(folder / name, table)
    options = []
    for part in ("train", "valid"):
        for file, name, kind in (("wav.scp", "speech", "sound"), ("text", "text", "text"), ("utt2lang", "lang", "text")):
            options += [f"--{part}_data_path_and_name_and_type", f"{folder / file},{name},{kind}"]
        options += [f"--{part}_shape_file", str(folder / "shape")]
    return options


def train(output: Path, epochs: int, ranks: int, options: list[str]) -> dict:
    """Runs the training in that many processes, and returns its checkpoint."""
    command = [sys.executable, "-m", "espnet_lole.bin.lole_train", "--output_dir", str(output), "--max_epoch", str(epochs)]
    command += ["--optim", "expert_adamw", "--optim_conf", "lr=0.001", "--optim_conf", "eps=1e-3", "--expert_conf", "rank=2"]
    command += ["--batch_type", "numel", "--batch_bins", "64000", "--num_workers", "0", "--resume", "true", "--ngpu", "0"]
    command += ["--langs", *"de en fr zh".split(), "--model_conf", "extract_feats_in_collect_stats=false", *options]
    command += ["--best_model_criterion", "valid,acc,max", "--keep_nbest_models", "1", "--use_matplotlib", "false"]
    if ranks > 1:
        command += ["--dist_world_size", str(ranks), "--dist_backend", "gloo"]
        command += ["--dist_init_method", f"file://{output}.init{epochs}", "--unused_parameters", "true"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    each = [["--dist_rank", str(rank)] if ranks > 1 else [] for rank in range(ranks)]
    processes = [subprocess.Popen([*command, *rank], env=env, stderr=subprocess.PIPE, text=True) for rank in each]
    for process in processes:
        told = process.communicate(timeout=900)[1]
        assert process.returncode == 0, told[-3000:]
    return torch.load(output / "checkpoint.pth", weights_only=False)


def test_training_by_two_processes_resumed_is_that_of_one(tmp_path, speech):
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    options = [*make_data(tmp_path, speech), "--backbone", str(tmp_path / "tiny")]
    one = train(tmp_path / "one", 2, 1, options)
    train(tmp_path / "two", 1, 2, options)
    two = train(tmp_path / "two", 2, 2, options)
    assert one["reporter"]["epoch"] == two["reporter"]["epoch"] == 2
    for epoch, parts in one["reporter"]["stats"].items():
        for part in ("train", "valid"):
            for name in ("loss", "loss_de", "loss_en", "loss_zh", "acc"):
                assert two["reporter"]["stats"][epoch][part][name] == pytest.approx(parts[part][name], rel=5e-3, abs=5e-3)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, atol=2e-3, rtol=1e-2)

"""Estimates compared with what real steps of a tiny Whisper are measured to need."""

from __future__ import annotations

import io
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import tiny_whisper
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from espnet_lole.cli.main import main
from espnet_lole.config import config_files
from espnet_lole.estimate import UNCOUNTED, Workload, build_empty, measure
from espnet_lole.lole.system import SystemConfig, build_system
from espnet_lole.systems import base_system
from espnet_lole.tasks.lole import LoLETask, build_choice, system_choices
from espnet_lole.whisper.checkpoint import precision_dtype
from espnet_lole.whisper.model import Whisper

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [
    file
    for name in ("train", "mini/train")
    for file in sorted(ROOT.glob(f"conf/{name}_*.yaml"))
    if not file.stem.startswith("train_espnet")
]
CODES, WIDTH, WORK = ("de", "en", "zh"), 64, Workload(utterances=4, seconds=4.0, tokens=20)
OPTIONS = {
    "experts": "--expert_conf rank=4",
    "mole": "--fusion_conf shared_layers=2 --classifier_conf hidden=8 --classifier_conf dropout=0.0 "
    "--optim_conf lr=0.01",
    "student": "--expert_conf rank=8",
    "full": "",
}


def parse(tmp_path, system: str, *more: str) -> Namespace:
    """Return the options of a training on the tiny Whisper."""
    tiny_whisper(width=WIDTH).save_pretrained(tmp_path / "tiny")
    options = ["--system", system, "--backbone", str(tmp_path / "tiny"), "--langs", *CODES, "--output_dir", "-"]
    return LoLETask.parse_args([*options, *OPTIONS[system].split(), *more])


def real_model(args: Namespace):
    """Return the same system with weights."""
    whisper = Whisper(tiny_whisper(width=WIDTH), "none", precision_dtype(args.precision)).eval()
    system = build_system(SystemConfig.parse(vars(args)), whisper, empty_rank=4)
    return build_choice(system_choices, args, system, args.langs)


def step(model) -> None:
    """Run forward and backward on utterances of equal length, sorted by language as the collate function does."""
    samples = int(16000 * WORK.seconds)
    loss, *_ = model(
        speech=torch.randn(WORK.utterances, samples) * 0.1,
        speech_lengths=torch.full((WORK.utterances,), samples),
        text=torch.randint(0, 50000, (WORK.utterances, WORK.tokens)),
        text_lengths=torch.full((WORK.utterances,), WORK.tokens),
        lang=(torch.arange(WORK.utterances)[:, None] % len(CODES)).sort(0).values,
    )
    loss.backward()


def allocated(model) -> int:
    """Return the most that a step allocates at once, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(model)
    live = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ("system", "precision", "checkpointing"),
    [
        ("experts", "float32", False),
        ("experts", "bfloat16", True),
        ("mole", "bfloat16", False),
        ("student", "float32", True),
        ("full", "float32", False),
    ],
)
def test_an_estimate_is_what_a_real_step_needs(tmp_path, system, precision, checkpointing):
    checkpointing = ["--activation_checkpointing", str(checkpointing).lower()]
    args = parse(tmp_path, system, "--precision", precision, *checkpointing)
    needs, model = measure(args, build_empty(args, expert_rank=4), WORK), real_model(args)
    params = list(model.parameters())
    trained = [p for p in params if p.requires_grad]
    assert needs.trained == sum(p.numel() for p in trained)
    assert needs.trained + needs.frozen == sum(p.numel() for p in params)
    assert needs.weights == sum(p.numel() * p.element_size() for p in params)
    file, state = io.BytesIO(), model.state_dict()
    torch.save(state, file)
    assert 0 < len(file.getvalue()) - needs.model_file < 1024 + 512 * len(state)  # names and rounding
    (optimizer,) = LoLETask.build_optimizers(args, model)
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as flops:
        step(model)
    features = 2 * WORK.utterances * 80 * 201 * int(100 * WORK.seconds)
    assert needs.flops == flops.get_total_flops() - features
    optimizer.step()
    moments = sum(x.numel() * x.element_size() for s in optimizer.state.values() for x in s.values())
    assert needs.optimizer == pytest.approx(moments, rel=0.01)
    assert needs.activations == pytest.approx(allocated(model), rel=0.15)


def test_activations_include_what_autograd_saves(tmp_path):
    args, saved = parse(tmp_path, "experts"), {}
    needs, model = measure(args, build_empty(args, expert_rank=4), WORK), real_model(args)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x):
        if x.untyped_storage().data_ptr() not in weights:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage()  # referenced, so that its address stays taken
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        step(model)
    total = sum(storage.nbytes() for storage in saved.values())
    logits = 4 * WORK.utterances * (WORK.tokens + 1) * model.whisper.model.config.vocab_size
    assert total <= needs.activations <= 2 * (total + logits)


def test_a_batch_is_shared_by_the_gpus():
    assert Workload.share(2_560_000, 8, 10.0, 4.0) == Workload(2, 10.0, 40)
    assert Workload.share(16_000, 8, 5.0, 0.5) == Workload(1, 5.0, 3)
    with pytest.raises(ValueError, match="expected at least one GPU, 0.025 to 30 s"):
        Workload.share(2_560_000, 8, 31.0, 4.0)


def test_the_command_prints_a_column_for_each_configuration(tmp_path, capsys):
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    for name in ("train_experts", "train_multilingual"):
        (tmp_path / f"{name}.yaml").write_text("{batch_bins: 640000, expert_conf: {rank: 2}}")
    files = [str(tmp_path / "train_experts.yaml"), str(tmp_path / "train_multilingual.yaml")]
    options = ["--backbone", str(tmp_path / "tiny"), "--gpus", "2", "--langs", "de"]
    assert main(["plan", *files, *options, "--train_args", "--use_amp", "true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["train_experts", "train_multilingual"]
    assert "2 x 10 s" in next(line for line in lines if line.startswith("batch of a GPU"))
    assert main(["plan", files[0], *options, "--train_args", "--optim", "adagrad"]) == 1
    assert "got 'adagrad'" in capsys.readouterr().err


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_training_configuration_is_built(file):
    files = ["--config", *map(str, config_files(file))]
    system = ["--system", base_system(file.stem.partition("_")[2])]
    backbone = [] if file.parent.name == "conf" else ["--backbone", str(ROOT / "models" / "whisper-nano")]
    args = LoLETask.parse_args([*files, *system, *backbone, "--langs", *CODES, "--output_dir", "-"])
    model = build_empty(args, expert_rank=4)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if file == ROOT / "conf" / "train_experts.yaml":  # attention of 72 blocks, 48 feed-forwards
        assert trained == len(CODES) * 64 * (72 * 4 * 2 * 1024 + 48 * 2 * 5 * 1024)
    assert 0 < trained <= sum(p.numel() for p in model.parameters())

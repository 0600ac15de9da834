"""Plans against what real steps of a tiny Whisper are measured to need."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from conftest import random_experts, tiny_whisper
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from espnet_lole.cli.main import main
from espnet_lole.espnet_full_model import ESPnetFullModel
from espnet_lole.espnet_model import ESPnetExpertModel
from espnet_lole.espnet_mole_model import ESPnetMoLEModel
from espnet_lole.espnet_student_model import STUDENT, DistillConfig, ESPnetStudentModel
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.experts import hold_routes
from espnet_lole.lole.fast import Spans
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.lole.mole import MoLE
from espnet_lole.tasks.lole import LoLETask
from espnet_lole.train.estimate import UNCOUNTED, Needs, Workload, build_empty, measure
from espnet_lole.whisper.checkpoint import precision
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [file for file in sorted(ROOT.glob("conf/**/train*.yaml")) if file.stem != "train_espnet"]
CODES, WIDTH, WORK = ("de", "en", "zh"), 64, Workload(utterances=4, seconds=4.0, tokens=20)
OPTIONS = {
    "experts": "--optim expert_adamw --expert_conf rank=4".split(),
    "mole": "--optim adamw --fusion_conf shared_layers=2 --classifier_conf hidden=8 --classifier_conf dropout=0".split()
    + ["--optim_conf", "lr=0.01"],
    "student": "--optim adamw --expert_conf rank=8".split(),
    "full": "--optim adamw".split(),
}


def real_model(system: str, dtype: torch.dtype):
    """The system with weights."""
    backbone, tokens = (
        Backbone(tiny_whisper(width=WIDTH), "short", dtype).eval().requires_grad_(False),
        WhisperTokens(51865),
    )
    if system == "full":
        return ESPnetFullModel(backbone, CODES, tokens)
    bank = random_experts(ExpertBank(backbone.model, CODES, ExpertConfig(rank=4)))
    if system == "experts":
        return ESPnetExpertModel(backbone, bank, tokens)
    if system == "mole":
        return ESPnetMoLEModel(
            MoLE(backbone, bank, FusionConfig(2), ClassifierConfig(hidden=8, dropout=0.0)), tokens, 1.0
        )
    student = ExpertBank(backbone.model, [STUDENT], ExpertConfig(rank=8))
    return ESPnetStudentModel(backbone, CODES, bank, student, tokens, DistillConfig(), 1)


def step(model) -> None:
    """Forward and backward on utterances of equal length."""
    samples = int(16000 * WORK.seconds)
    loss, *_ = model(
        speech=torch.randn(WORK.utterances, samples) * 0.1,
        speech_lengths=torch.full((WORK.utterances,), samples),
        text=torch.randint(0, 50000, (WORK.utterances, WORK.tokens)),
        text_lengths=torch.full((WORK.utterances,), WORK.tokens),
        lang=torch.arange(WORK.utterances)[:, None] % len(CODES),
    )
    loss.backward()


def allocated(model) -> int:
    """The most that a step allocates at once, as torch's own allocator tells the profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(model)
    live = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def planned(tmp_path, system: str, *more: str) -> Needs:
    """The plan of the same system."""
    tiny_whisper(width=WIDTH).save_pretrained(tmp_path / "tiny")
    options = [
        "--system",
        system,
        "--backbone",
        str(tmp_path / "tiny"),
        "--langs",
        *CODES,
        "--output_dir",
        "-",
        *OPTIONS[system],
    ]
    args = LoLETask.get_parser().parse_args([*options, *more])
    return measure(args, build_empty(args, expert_rank=4), WORK)


@pytest.mark.parametrize(
    ("system", "name", "checkpointing"),
    [
        ("experts", "float32", False),
        ("experts", "bfloat16", True),
        ("mole", "bfloat16", False),
        ("student", "float32", True),
        ("full", "float32", False),
    ],
)
def test_plan_is_what_a_real_step_needs(tmp_path, system, name, checkpointing):
    needs = planned(tmp_path, system, "--precision", name, "--checkpointing", str(checkpointing).lower())
    model = real_model(system, precision(name))
    model.backbone.recompute = (lambda: hold_routes(model)) if checkpointing else None
    trained = [p for p in model.parameters() if p.requires_grad]
    assert (needs.trained, needs.trained + needs.frozen) == (
        sum(p.numel() for p in trained), sum(p.numel() for p in model.parameters())
    )  # fmt: skip
    assert needs.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    file, state = io.BytesIO(), model.state_dict()
    torch.save(state, file)
    assert 0 < len(file.getvalue()) - needs.model_file < 1024 + 512 * len(state)  # names and rounding
    optimizer = LoLETask.build_optimizers(
        LoLETask.get_parser().parse_args(["--output_dir", "-", *OPTIONS[system]]), model
    )[0]
    with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as flops:
        patch.setattr(Spans, "merging_pays", lambda *_: False)  # a CPU's teacher saves operations by it
        step(model)
    features = 2 * WORK.utterances * 80 * 201 * int(100 * WORK.seconds)
    assert needs.flops == flops.get_total_flops() - features
    optimizer.step()
    moments = sum(x.numel() * x.element_size() for s in optimizer.state.values() for x in s.values())
    assert needs.optimizer == pytest.approx(moments, rel=0.01)
    assert needs.activations == pytest.approx(allocated(model), rel=0.15)


def test_activations_hold_what_autograd_saves(tmp_path):
    needs, model, saved = planned(tmp_path, "experts"), real_model("experts", torch.float32), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x):
        if x.untyped_storage().data_ptr() not in own:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage()  # held, so that no other takes its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        step(model)
    total = sum(storage.nbytes() for storage in saved.values())
    scores = (
        4 * WORK.utterances * (WORK.tokens + 1) * model.backbone.model.config.vocab_size
    )  # come and go in the forward pass
    assert total <= needs.activations <= 2 * (total + scores)


def test_a_batch_is_shared_by_the_gpus():
    assert Workload.share(2_560_000, 8, 10.0, 4.0) == Workload(2, 10.0, 40)
    assert Workload.share(16_000, 8, 5.0, 0.5) == Workload(1, 5.0, 3)
    with pytest.raises(ValueError, match="expected at least one GPU, 0.025 to 30 s"):
        Workload.share(2_560_000, 8, 31.0, 4.0)


def test_command_prints_a_column_for_each_config(tmp_path, capsys):
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("{optim: expert_adamw, batch_bins: 640000, expert_conf: {rank: 2}}")
    files = [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
    main(
        [
            "plan",
            *files,
            "--backbone",
            str(tmp_path / "tiny"),
            "--gpus",
            "2",
            "--langs",
            "de",
            "--train_args",
            "--use_amp",
            "true",
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["one", "two"]
    assert "2 x 10 s" in next(line for line in lines if line.startswith("batch of a GPU"))
    assert main(["plan", files[0], "--backbone", str(tmp_path / "tiny"), "--train_args", "--optim", "adagrad"]) == 1
    assert (
        "error: expected optim of ['adam', 'adamw', 'expert_adamw', 'sgd'] to plan, got 'adagrad'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_training_config_is_built(file):
    args = LoLETask.get_parser().parse_args(["--config", str(file), "--langs", *CODES, "--output_dir", "-"])
    args.backbone = (
        str(ROOT / args.backbone.removeprefix("../../../")) if args.backbone.startswith("..") else args.backbone
    )
    model = build_empty(args, expert_rank=4)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if file == ROOT / "conf" / "train_experts.yaml":
        assert trained == len(CODES) * 64 * (
            72 * 4 * 2 * 1024 + 48 * 2 * 5 * 1024
        )  # attention of 72 blocks, 48 feed-forwards
    assert 0 < trained <= sum(p.numel() for p in model.parameters())


def test_other_systems_are_refused(tmp_path):
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    args = LoLETask.get_parser().parse_args(
        ["--backbone", str(tmp_path / "tiny"), "--langs", "de", "--output_dir", "-"]
    )
    args.system = "other"
    with pytest.raises(
        ValueError, match="expected a system of \\['experts', 'full', 'mole', 'student'\\] to plan, got 'other'"
    ):
        build_empty(args, expert_rank=4)

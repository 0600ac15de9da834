"""Training steps: experts against ESPnet with loralib and ``transformers`` with ``peft``; a student; all systems."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import Outcome, Size, Work, peak_memory
from benchmarks.peers import espnet_lora, mixed, peft_lora
from benchmarks.systems import LANGS, TOKENIZER, as_whisper, make_experts, mel30, stock, texts, utterances
from espnet_lole.espnet_model import ESPnetExpertsModel
from espnet_lole.lole.experts import ExpertConfig
from espnet_lole.lole.mole import FusionConfig
from espnet_lole.lole.system import SystemConfig, build_system
from espnet_lole.tasks.lole import LoLETask, system_choices
from espnet_lole.whisper.checkpoint import precision_dtype

SYSTEMS = ("experts", "mole", "student", "multilingual")
OPTIONS = Namespace(grad_clip=1.0, optim="adamw", optim_conf={"lr": 1e-4}, fusion_lr_factor=1.0)
"""Options of ``lole_train`` that a step depends on."""


def make_batch(size: Size, languages: int = len(LANGS), count: int | None = None, seconds: float | None = None) -> dict:
    """Make a batch sorted by language: an utterance of each language, the others drawn."""
    count = count or size.train_batch
    speech, lengths = utterances(size, count, seconds)
    drawn = torch.randint(languages, (max(0, count - languages),), generator=torch.Generator().manual_seed(4))
    langs = torch.cat([torch.arange(min(languages, count)), drawn]).sort().values[:, None]
    return {
        "speech": speech, "speech_lengths": lengths, "text": texts(size, count),
        "text_lengths": torch.full_like(lengths, size.tokens), "lang": langs.to(size.device),
    }  # fmt: skip


def stepping(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Work:
    """Return a training step."""

    def work() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return work


def our_step(model: nn.Module, data: dict) -> Work:
    """Return a training step of one of ESPnet's models of this project."""
    (optimizer,) = LoLETask.build_optimizers(OPTIONS, model)
    return stepping(lambda: model(**data)[0], optimizer)


def experts_step(size: Size, languages: int = len(LANGS), rank: int | None = None, **shape: float) -> Work:
    """A step of an expert for each language."""
    experts = make_experts(size, languages, rank)
    model = ESPnetExpertsModel(experts, experts.languages).to(size.device).train()
    return our_step(model, make_batch(size, languages, **shape))


def system_step(size: Size, system: str, **options: object) -> Work:
    """A step of any system, with the options of its configuration."""
    config = SystemConfig(system, "", LANGS, expert_conf=ExpertConfig(size.rank, 2.0 * size.rank), **options)
    built = build_system(config, as_whisper(stock(size), size), empty_rank=size.rank)
    model = system_choices.get_class(system)(built, LANGS)
    return our_step(model.to(size.device).train(), make_batch(size))


def espnet_step(size: Size) -> Work:
    """A step of ESPnet's Whisper with one LoRA for all languages."""
    model, data = espnet_lora(size), make_batch(size)

    def loss() -> Tensor:
        with mixed(size):
            return model(**data)[0]

    return stepping(loss, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))


def peft_step(size: Size) -> Work:
    """A step of ``transformers`` with ``peft``: one LoRA for all languages, utterances padded to 30 s."""
    model, data = peft_lora(size), make_batch(size)
    prompts = torch.tensor([TOKENIZER.prompt(LANGS[i]) for i in data["lang"][:, 0]], device=size.device)
    inputs = torch.cat([prompts, data["text"]], 1)
    ends = torch.full_like(prompts[:, :1], TOKENIZER.eot)
    labels = torch.cat([torch.full_like(prompts[:, 1:], -100), data["text"], ends], 1)

    def loss() -> Tensor:
        with mixed(size):
            return model(
                input_features=mel30(data["speech"]).to(size.precision), decoder_input_ids=inputs, labels=labels
            ).loss

    return stepping(loss, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))


def bfloat16_step(size: Size) -> Work:
    """A step of experts as ``precision: auto`` runs it on a processor with bfloat16 instructions."""
    return experts_step(replace(size, precision=torch.bfloat16))


def train_step(size: Size) -> Outcome:
    """Measure a step of experts on a mixed-language batch, and its memory."""
    makers = {"experts": experts_step, "ESPnet + loralib": espnet_step, "transformers + peft": peft_step}
    if size.precision == torch.float32 and precision_dtype("auto") == torch.bfloat16:
        makers["experts, bfloat16"] = bfloat16_step
    out = _race("train_step", makers, size)
    for ours in (name for name in makers if name.startswith("experts")):
        for benchmark in ("train_step", "train_step memory"):
            out.compare(benchmark, ours, "ESPnet + loralib", "transformers + peft")
    return out


def kd_step(size: Size) -> Outcome:
    """Measure a step of a student with its teacher against one of a LoRA without."""
    out = _race("kd_step", {name: partial(system_step, system=name) for name in ("student", "multilingual")}, size)
    for benchmark in ("kd_step", "kd_step memory"):
        out.compare(benchmark, "student", "multilingual")
    return out


def systems(size: Size) -> Outcome:
    """Measure a step of each system, and its memory, with activation checkpointing."""
    fusion = {"fusion_conf": FusionConfig(shared_layers=max(1, size.layers * 5 // 6))}
    out = Outcome()
    for system in SYSTEMS:
        options = {"activation_checkpointing": True} | (fusion if system == "mole" else {})
        one = _race(
            "systems", {system: partial(system_step, system=system, **options)}, size
        )  # one model in memory at a time
        out.measures += one.measures
    return out


def _race(benchmark: str, makers: Mapping[str, Callable[[Size], Work]], size: Size) -> Outcome:
    """Measure time and memory of steps."""
    out = Outcome()
    out.race(benchmark, {name: make(size) for name, make in makers.items()}, size.repeats)
    for name, make in makers.items():
        out.add(f"{benchmark} memory", name, "GB", [peak_memory(make, size)])
    return out

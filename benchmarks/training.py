"""Training steps: experts against ESPnet with loralib and ``transformers`` with ``peft``; distillation against none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Outcome, Size, Work, peak_memory, synchronize
from benchmarks.systems import END, LANGS, VOCAB, espnet_lora, mel30, mixed, ours, stock, texts, trainee, utterances
from espnet_lole.espnet_student_model import STUDENT, DistillConfig, ESPnetStudentModel
from espnet_lole.lole.bank import DEFAULT_TARGETS, ExpertBank, ExpertConfig
from espnet_lole.train.optimizer import ExpertAdamW
from espnet_lole.whisper.checkpoint import precision
from espnet_lole.whisper.tokenizer import WhisperTokens

PRODUCTS = re.compile("mm|convolution|attention|gemm|cutlass|nvjet|fmha|flash|cudnn")
"""In the names of the operators, or of a GPU's kernels, that are matrix products, attention's among them."""


def stepping(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Work:
    """A training step of a model."""

    def work() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return work


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train."""
    return [p for p in model.parameters() if p.requires_grad]


def batch(size: Size, languages: int = len(LANGS), count: int | None = None, seconds: float | None = None) -> dict:
    """Utterances as the collate function gives them: one of each language, the others drawn, sorted by language."""
    count = count or size.train_batch
    speech, lengths = utterances(size, count, seconds)
    drawn = torch.randint(languages, (max(0, count - languages),), generator=torch.Generator().manual_seed(4))
    langs = torch.cat([torch.arange(min(languages, count)), drawn]).sort().values[:, None]
    return {
        "speech": speech, "speech_lengths": lengths, "text": texts(size, count),
        "text_lengths": torch.full_like(lengths, size.tokens), "lang": langs.to(size.device),
    }  # fmt: skip


def experts_step(size: Size, languages: int = len(LANGS), rank: int | None = None, **shape: float) -> Work:
    """Ours: an expert for each language."""
    model, data = trainee(size, languages, rank), batch(size, languages, **shape)
    return stepping(model, ExpertAdamW(trained(model), max_grad_norm=1.0), lambda: model(**data)[0])


def half_step(size: Size) -> Work:
    """Ours with products in bfloat16: ``precision: auto``, where the processor has such instructions."""
    return experts_step(replace(size, precision=torch.bfloat16))


def espnet_step(size: Size) -> Work:
    """ESPnet's Whisper, one LoRA for all languages."""
    model, data = espnet_lora(size), batch(size)

    def loss() -> torch.Tensor:
        with mixed(size):
            return model(**data)[0]

    return stepping(model, torch.optim.AdamW(trained(model)), loss)


def peft_step(size: Size) -> Work:
    """``transformers`` with ``peft``, one LoRA for all languages, utterances padded to 30 s."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=size.rank, lora_alpha=2 * size.rank, target_modules=list(DEFAULT_TARGETS))
    model, data = get_peft_model(stock(size).to(size.precision), config).train(), batch(size)
    prompts = torch.tensor([WhisperTokens(VOCAB).prompt(LANGS[i]) for i in data["lang"][:, 0]], device=size.device)
    ends = torch.full_like(prompts[:, :1], END)
    inputs = torch.cat([prompts, data["text"]], 1)
    labels = torch.cat([torch.full_like(prompts[:, 1:], -100), data["text"], ends], 1)

    def loss() -> torch.Tensor:
        with mixed(size):
            return model(
                input_features=mel30(data["speech"]).to(size.precision), decoder_input_ids=inputs, labels=labels
            ).loss

    return stepping(model, torch.optim.AdamW(trained(model)), loss)


def student_step(size: Size, kd: str) -> Work:
    """A student, with or without the experts as its teacher."""
    backbone, teacher = ours(size, len(LANGS) if kd != "none" else None)
    student = ExpertBank(backbone.model, [STUDENT], ExpertConfig(size.rank, 2.0 * size.rank))
    tokens = WhisperTokens(VOCAB)
    model = (
        ESPnetStudentModel(backbone, LANGS, teacher, student, tokens, DistillConfig(kd=kd), epochs=1)
        .to(size.device)
        .train()
    )
    data = batch(size)
    return stepping(model, torch.optim.AdamW(trained(model)), lambda: model(**data)[0])


def train_step(size: Size) -> Outcome:
    """A step of experts on a mixed-language batch, with its memory and the share of its matrix products."""
    out = Outcome()
    auto = size.precision == torch.float32 and precision("auto") == torch.bfloat16
    mine = {"experts": experts_step} | ({"experts, bfloat16": half_step} if auto else {})
    makers = mine | {"ESPnet + loralib": espnet_step, "transformers + peft": peft_step}
    out.race("train_step", {name: make(size) for name, make in makers.items()}, size.repeats)
    for name, make in makers.items():
        out.add("train_step memory", name, "GB", [peak_memory(make, size)])
    for name in mine:
        for peer, bar in (("ESPnet + loralib", ">= 1.3"), ("transformers + peft", ">= 6")):
            out.claim("train_step", name, peer, bar)
            out.claim("train_step memory", name, peer, "<= 1")
    work = experts_step(size)
    shares = [product_share(work) for _ in range(min(size.repeats, 3))]
    out.add("train_step outside matrix products", "experts", "%", [100 - share for share in shares])
    out.add("train_step outside matrix products", "allowed", "%", [25.0])
    out.claim("train_step outside matrix products", "experts", "allowed", "<= 1")
    return out


def product_share(work: Work) -> float:
    """Percent of the time of a step, the processor's or the GPU's, that its matrix products take."""
    work()
    seconds = seconds_by_name(work)
    return 100 * sum(value for name, value in seconds.items() if PRODUCTS.search(name)) / sum(seconds.values())


def seconds_by_name(work: Work) -> dict[str, float]:
    """Seconds that each operator took on the processor; or, where a GPU is in use, each kernel on it."""
    gpu = torch.cuda.is_initialized()
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as record:
        work()
        synchronize()
    return {e.key: (e.self_device_time_total if gpu else e.self_cpu_time_total) / 1e6 for e in record.key_averages()}


def kd_step(size: Size) -> Outcome:
    """A step of a student with a teacher against one without."""
    out = Outcome()
    kinds = {"with teacher": "both", "plain student": "none"}
    out.race("kd_step", {name: student_step(size, kd) for name, kd in kinds.items()}, size.repeats)
    for name, kd in kinds.items():
        out.add("kd_step memory", name, "GB", [peak_memory(student_step, size, kd)])
    out.claim("kd_step", *kinds, "<= 1.6")
    out.claim("kd_step memory", *kinds)
    return out

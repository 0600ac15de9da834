"""Estimates what a training needs before it is started, from a step on tensors that have shapes but no values."""

from __future__ import annotations

import argparse
import math
import weakref
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from espnet_lole.espnet_model import AbsLoLEModel
from espnet_lole.lole.system import SystemConfig, build_system
from espnet_lole.tasks.lole import build_choice, system_choices
from espnet_lole.train.distributed_mean import distributed_means
from espnet_lole.train.targets import Targets
from espnet_lole.whisper.checkpoint import empty_whisper
from espnet_lole.whisper.features import HOP, MAX_SAMPLES, SAMPLE_RATE
from espnet_lole.whisper.model import Encoded

MOMENTS = {"adam": 2, "adamw": 2, "sgd": 0}
"""Tensors that an optimizer stores for each trained one."""
_ATEN = torch.ops.aten
UNCOUNTED = {
    **dict.fromkeys((_ATEN.addmm_, _ATEN.baddbmm_), lambda onto, left, _right, **_: 2 * math.prod(onto) * left[-1]),
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}
"""Operations that torch does not count by itself."""


@dataclass(frozen=True)
class Workload:
    """What one process gets in a step.

    Attributes:
        utterances: B.
        seconds: of each.
        tokens: of each text, without prompt and end.
    """

    utterances: int
    seconds: float
    tokens: int

    @classmethod
    def share(cls, batch_bins: int, gpus: int, seconds: float, tokens_per_second: float) -> Workload:
        """Return a process's share of a batch of ``batch_bins`` samples, in utterances of equal length, at least one.

        Raises:
            ValueError: a figure is not positive, or an utterance is longer than Whisper takes.
        """
        if gpus < 1 or tokens_per_second <= 0 or not 0.025 <= seconds <= MAX_SAMPLES / SAMPLE_RATE:
            raise ValueError(
                f"expected at least one GPU, 0.025 to 30 s per utterance and tokens, got {gpus}, {seconds} and "
                f"{tokens_per_second}"
            )
        utterances = max(int(batch_bins / gpus / SAMPLE_RATE / seconds), 1)
        return cls(utterances, seconds, math.ceil(seconds * tokens_per_second))


@dataclass(frozen=True)
class Needs:
    """What one process needs; bytes but for the parameters and the operations.

    Attributes:
        trained: parameters that train.
        frozen: parameters that do not.
        weights: of all parameters, frozen ones in their precision.
        gradients: of the trained ones.
        optimizer: its state.
        activations: the most that a step's forward and backward pass hold at once besides the weights and gradients.
        model_file: the checkpoint of the model that each epoch writes.
        checkpoint: what training resumes from.
        flops: floating-point operations of a step, two for a multiplication with its addition.
    """

    trained: int
    frozen: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    model_file: int
    checkpoint: int
    flops: int

    @property
    def memory(self) -> int:
        """Weights, gradients, optimizer and activations."""
        return self.weights + self.gradients + self.optimizer + self.activations


class PeakMemory(TorchDispatchMode):
    """Within the context, counts the bytes of the tensors that exist; ``peak`` is the largest number."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation and count its results."""
        known = {id(x.untyped_storage()) for x in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for x in _tensors(result):
            storage = x.untyped_storage()
            if id(storage) not in known and storage not in self._seen:
                self._seen.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _free(self, size: int) -> None:
        self.live -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def build_empty(args: argparse.Namespace, expert_rank: int) -> AbsLoLEModel:
    """Build the configured system on the meta device; prepared experts that it needs have rank ``expert_rank``.

    Raises:
        ValueError: a configuration does not fit.
        FileNotFoundError: the backbone has no published name, and is neither here nor on the hub.
    """
    pad_to = "30s" if args.share_30s else args.pad_to  # the largest steps
    whisper = empty_whisper(args.backbone, pad_to, args.precision)
    system = build_system(SystemConfig.parse(vars(args)), whisper, empty_rank=expert_rank)
    return build_choice(system_choices, args, system, args.langs)


def measure(args: argparse.Namespace, model: AbsLoLEModel, work: Workload) -> Needs:
    """Measure what a step of a system needs.

    Args:
        args: of the training.
        model: from ``build_empty``; its parameters are replaced.
        work: of a process.

    Raises:
        ValueError: the state of the optimizer is not known here.
    """
    if args.optim not in MOMENTS:
        raise ValueError(f"expected optim of {sorted(MOMENTS)} for an estimate, got {args.optim!r}")
    params = list(model.parameters())
    trained = [p for p in params if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    state = MOMENTS[args.optim] * gradients
    memory, flops = PeakMemory(), FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    amp = torch.autocast("cpu", torch.bfloat16) if args.use_amp else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as stack:
        _fill_with_fakes(model)
        for context in (memory, flops):
            stack.enter_context(context)
        with amp:
            loss = step_loss(model, work)
        loss.backward()
    return Needs(
        trained=sum(p.numel() for p in trained),
        frozen=sum(p.numel() for p in params if not p.requires_grad),
        weights=sum(p.numel() * p.element_size() for p in params),
        gradients=gradients,
        optimizer=state,
        activations=memory.peak,
        model_file=gradients,
        checkpoint=gradients + state,
        flops=flops.get_total_flops(),
    )


def _fill_with_fakes(model: nn.Module) -> None:
    """Replace parameters and buffers by fake ones on the CPU; sharing remains, and trained ones get gradients."""
    fakes: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None and id(old) not in fakes:
                    new = torch.zeros(old.shape, dtype=old.dtype)
                    fakes[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                    if old.requires_grad:
                        fakes[id(old)].grad = torch.zeros_like(new)
                if old is not None:
                    table[name] = fakes[id(old)]


def step_loss(model: AbsLoLEModel, work: Workload) -> Tensor:
    """Compute the loss of a step of utterances of equal length, in which the languages take turns."""
    whisper, batch, prompt = model.whisper, work.utterances, model.prompts.shape[1]
    frames = whisper.input_samples(round(work.seconds * SAMPLE_RATE)) // HOP
    mel = torch.zeros(batch, whisper.model.config.num_mel_bins, frames)
    states = whisper.convolve(mel, torch.ones(batch, frames, dtype=torch.bool))
    embedded = Encoded(states, torch.ones(states.shape[:2], dtype=torch.bool))
    experts = sorted(i % len(model.languages) for i in range(batch))
    labels = torch.zeros(batch * (work.tokens + 1), dtype=torch.long)  # text and end
    targets = Targets(
        tokens=torch.zeros(batch, prompt + work.tokens, dtype=torch.long),
        index=torch.zeros_like(labels),
        labels=labels,
        num_text=len(labels),
        lengths=torch.zeros(batch, dtype=torch.long),
        language=torch.zeros(batch, dtype=torch.long),
        experts=experts,
    )
    return model.total_loss(distributed_means(model.compute_losses(embedded, targets, embedded), batch).losses)

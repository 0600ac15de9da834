"""What a training will need, before it is started: the configured system is built without weights and run without numbers."""

from __future__ import annotations

import argparse
import math
import weakref
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from espnet_lole.config import read_conf
from espnet_lole.espnet_full_model import ESPnetFullModel
from espnet_lole.espnet_model import AbsLoLEModel, ESPnetExpertModel
from espnet_lole.espnet_mole_model import ESPnetMoLEModel
from espnet_lole.espnet_student_model import STUDENT, DistillConfig, ESPnetStudentModel
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.experts import hold_routes
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.lole.mole import MoLE
from espnet_lole.whisper.checkpoint import empty_backbone
from espnet_lole.whisper.features import HOP, MAX_SAMPLES, SAMPLE_RATE
from espnet_lole.whisper.loss import token_costs
from espnet_lole.whisper.model import Backbone, Encoded
from espnet_lole.whisper.tokenizer import WhisperTokens

MOMENTS = {"adam": 2, "adamw": 2, "expert_adamw": 2, "sgd": 0}
"""Tensors that an optimizer keeps for each trained one."""
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
        """A process's share of a batch of ``batch_bins`` samples in utterances of equal length, at least one.

        Raises:
            ValueError: a figure is not positive, or an utterance is longer than Whisper takes.
        """
        if gpus < 1 or tokens_per_second <= 0 or not 0.025 <= seconds <= MAX_SAMPLES / SAMPLE_RATE:
            raise ValueError(
                f"expected at least one GPU, 0.025 to 30 s an utterance and tokens, got {gpus}, {seconds} and {tokens_per_second}"
            )
        return cls(
            max(int(batch_bins / gpus / SAMPLE_RATE / seconds), 1), seconds, math.ceil(seconds * tokens_per_second)
        )


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
        model_file: a checkpoint of the model, as each epoch leaves one.
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
    """Within the context, counts the bytes of the tensors that come to be and go; ``peak`` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation and count what it made."""
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
    """The configured system on the meta device, on experts of ``expert_rank`` where it needs prepared ones.

    Raises:
        ValueError: the system is not one of these, or a configuration does not fit.
    """
    backbone = empty_backbone(args.backbone, args.window, args.precision).requires_grad_(False)
    tokens = WhisperTokens(backbone.model.config.vocab_size)
    if args.system not in BUILD:
        raise ValueError(f"expected a system of {sorted(BUILD)} to plan, got {args.system!r}")
    model = BUILD[args.system](args, backbone, tokens, ExpertConfig(rank=expert_rank))
    if args.checkpointing:
        backbone.recompute = partial(hold_routes, backbone)
    return model


def _experts(args: argparse.Namespace, backbone: Backbone, tokens: WhisperTokens, _: ExpertConfig) -> ESPnetExpertModel:
    conf = read_conf(ExpertConfig, args.expert_conf, "expert_conf")
    return ESPnetExpertModel(backbone, ExpertBank(backbone.model, args.langs, conf), tokens)


def _mole(
    args: argparse.Namespace, backbone: Backbone, tokens: WhisperTokens, experts: ExpertConfig
) -> ESPnetMoLEModel:
    bank = ExpertBank(backbone.model, args.langs, experts)
    fusion = read_conf(FusionConfig, args.fusion_conf, "fusion_conf")
    classifier = read_conf(ClassifierConfig, args.classifier_conf, "classifier_conf")
    return ESPnetMoLEModel(MoLE(backbone, bank, fusion, classifier), tokens, args.lid_weight)


def _student(
    args: argparse.Namespace, backbone: Backbone, tokens: WhisperTokens, experts: ExpertConfig
) -> ESPnetStudentModel:
    conf = read_conf(DistillConfig, args.distill_conf, "distill_conf")
    teacher = (
        None
        if conf.kd == "none" and args.student_start != "average"
        else ExpertBank(backbone.model, args.langs, experts)
    )
    student = ExpertBank(backbone.model, [STUDENT], read_conf(ExpertConfig, args.expert_conf, "expert_conf"))
    return ESPnetStudentModel(backbone, args.langs, teacher, student, tokens, conf, args.max_epoch)


def _full(args: argparse.Namespace, backbone: Backbone, tokens: WhisperTokens, _: ExpertConfig) -> ESPnetFullModel:
    return ESPnetFullModel(backbone, args.langs, tokens)


BUILD = {"experts": _experts, "mole": _mole, "student": _student, "full": _full}
"""System -> what builds it without weights."""


def measure(args: argparse.Namespace, model: AbsLoLEModel, work: Workload) -> Needs:
    """What a step of a system needs, found by running one on tensors that have shapes but no numbers.

    Args:
        args: of the training.
        model: from ``build_empty``; its parameters are replaced.
        work: what a process gets.

    Raises:
        ValueError: an optimizer whose state is not known here.
    """
    if args.optim not in MOMENTS:
        raise ValueError(f"expected optim of {sorted(MOMENTS)} to plan, got {args.optim!r}")
    params = list(model.parameters())
    trained = [p for p in params if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    state = MOMENTS[args.optim] * gradients
    memory, flops = PeakMemory(), FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    amp = torch.autocast("cpu", torch.bfloat16) if args.use_amp else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as stack:
        _fill_with_fakes(model)
        for context in (memory, flops, amp):
            stack.enter_context(context)
        loss = step_loss(model, work)
        amp.__exit__(None, None, None)
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
    """Replace parameters and buffers by fake ones on the CPU, shared ones by shared ones; those that train get gradients."""
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
    """The loss of a step of utterances of equal length, through the layers and losses that the system's own step has."""
    backbone, (batch, tokens) = model.backbone, (work.utterances, len(model.prompts[0]) + work.tokens)
    frames = backbone.input_samples(round(work.seconds * SAMPLE_RATE)) // HOP
    mel = torch.zeros(batch, backbone.model.config.num_mel_bins, frames)
    states = backbone.convolve(mel, torch.ones(batch, frames, dtype=torch.bool))
    embedded = Encoded(states, torch.ones(states.shape[:2], dtype=torch.bool))
    inputs = torch.zeros(batch, tokens, dtype=torch.long)
    return STEPS[type(model)](model, embedded, inputs)


def _chosen(states: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """The states (N, D) of each utterance's last ``positions`` targets, from states (B, U, D), and targets (N,)."""
    chosen = states[:, -positions:].flatten(0, 1)
    return chosen, torch.zeros(len(chosen), dtype=torch.long)


def _experts_step(model: ESPnetExpertModel, embedded: Encoded, inputs: Tensor) -> Tensor:
    with model.bank.routed(inputs[:, 0]):
        states = model.backbone.decode(inputs, model.backbone.finish(embedded, 0))
    return model.backbone.token_costs(*_chosen(states, inputs.shape[1] - 3))[0].mean()


def _mole_step(model: ESPnetMoLEModel, embedded: Encoded, inputs: Tensor) -> Tensor:
    shallow = model.backbone.encode_layers(embedded, 0, model.mole.shared_layers)
    language = F.cross_entropy(model.classifier(shallow), inputs[:, 0])
    with model.bank.routed(inputs[:, 0]):
        states = model.backbone.decode(inputs, model.mole.deep(shallow))
    return model.backbone.token_costs(*_chosen(states, inputs.shape[1] - 3))[0].mean() + language


def _student_step(model: ESPnetStudentModel, embedded: Encoded, inputs: Tensor) -> Tensor:
    with model.student.routed(inputs[:, 0]):
        own = model.run(embedded, inputs)
    if model.with_layers or model.with_logits:
        with torch.no_grad(), model.teacher.routed(inputs[:, 0]):
            theirs = model.run(embedded, inputs)
    chosen, wanted = _chosen(own.states, inputs.shape[1] - 2)  # with the language
    taught = _chosen(theirs.states, inputs.shape[1] - 3)[0] if model.with_logits else None
    parts = model.output_parts(chosen, wanted, taught, inputs[:, 0])
    if model.with_layers:
        parts |= model.layer_parts(own, theirs, torch.ones(inputs.shape, dtype=torch.bool))
    return model.weigh({name: total / count for name, (total, count) in parts.items()})[0]


def _full_step(model: ESPnetFullModel, embedded: Encoded, inputs: Tensor) -> Tensor:
    states = model.backbone.decode(inputs, model.backbone.finish(embedded, 0))
    chosen, wanted = _chosen(states, inputs.shape[1] - 2)  # with the language
    costs, hits = token_costs(model.backbone.logits(chosen).float(), wanted)
    return model.prompt_parts(chosen, costs, hits, inputs[:, 0])["loss_asr"][0] / len(costs)


STEPS: dict[type, Callable[..., Tensor]] = {
    ESPnetExpertModel: _experts_step,
    ESPnetMoLEModel: _mole_step,
    ESPnetStudentModel: _student_step,
    ESPnetFullModel: _full_step,
}
"""Model -> the loss of its step on tensors without numbers."""

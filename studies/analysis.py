"""What happens inside trained systems, measured for pictures and studies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet_lole.data.kaldi import read_table
from espnet_lole.espnet_model import AbsLoLEModel, ESPnetStudentModel
from espnet_lole.inference.batching import load_batches
from espnet_lole.inference.load import find_system, system_config
from espnet_lole.inference.test_sets import read_test_set
from espnet_lole.lole.experts import LoRAExperts, share_weights
from espnet_lole.lole.kd import STUDENT, KDConfig, LoRAKD, average_factors, energy_shares, svd_of_product
from espnet_lole.lole.system import SystemConfig, build_system
from espnet_lole.train.targets import IGNORE, make_targets
from espnet_lole.whisper.checkpoint import load_whisper
from espnet_lole.whisper.model import Whisper

BATCH_SECONDS = 60.0


def trained_config(folder: Path) -> SystemConfig:
    """Return what a trained system in a folder is built from, with products in float32."""
    return replace(system_config(find_system(folder)), precision="float32")


def load_system(folder: Path) -> nn.Module:
    """Build a trained system in evaluation mode; a student or a multilingual LoRA is ``LoRAExperts`` of one adapter."""
    return build_system(trained_config(folder)).eval()


def load_student(folder: Path, experts: Path) -> ESPnetStudentModel:
    """Build a student or a multilingual LoRA with trained experts as its teacher, and the loss of all layers.

    Raises:
        ValueError: the folder holds another system.
    """
    config = trained_config(folder)
    if config.langs != (STUDENT,):
        raise ValueError(f"expected a student or a multilingual LoRA in {folder}, got a system of another kind")
    whisper = load_whisper(config.backbone, config.pad_to)
    teacher = build_system(trained_config(experts), share_weights(whisper))
    student = LoRAKD(build_system(config, whisper), teacher, KDConfig(kd="layers"))
    return ESPnetStudentModel(student, teacher.languages).eval()


def labelled_batches(model: AbsLoLEModel, folder: Path) -> Iterator[dict[str, Tensor]]:
    """Load the utterances of a formatted set with texts, as the arguments of ``model.forward``."""
    texts, audio = read_table(folder / "text"), read_test_set(folder)
    for rows, speech, lengths in load_batches(audio, model.whisper, BATCH_SECONDS):
        batch = [audio[row] for row in rows]
        text = [torch.tensor(model.tokenizer.encode(texts[item.id], item.language)) for item in batch]
        yield {
            "speech": speech,
            "speech_lengths": lengths,
            "text": pad_sequence(text, batch_first=True, padding_value=IGNORE),
            "text_lengths": torch.tensor([len(t) for t in text]),
            "lang": torch.tensor([[model.languages.index(item.language)] for item in batch]),
        }


@torch.no_grad()
def energy_by_layer(experts: LoRAExperts) -> dict[str, Tensor]:
    """Compute how much of the experts' average each rank preserves.

    Returns:
        ``enc1``, ..., ``dec1``, ... -> share of the energy at rank 1 .. k, the mean over the layer's linears, shape
        (k,); k is the least over the layer's linears.
    """
    shares: dict[str, list[Tensor]] = {}
    for name, layer in experts.layers.items():
        part, number = re.fullmatch(r".*(enc|dec)oder\.layers\.(\d+)\..*", name).groups()
        _, s, _ = svd_of_product(*average_factors(layer))
        shares.setdefault(f"{part}{int(number) + 1}", []).append(energy_shares(s))
    ranks = {key: min(map(len, values)) for key, values in shares.items()}
    return {key: torch.stack([v[: ranks[key]] for v in values]).mean(0) for key, values in shares.items()}


@torch.no_grad()
def layer_cosines(model: ESPnetStudentModel, folder: Path) -> dict[str, float]:
    """Measure the cosine between a student's hidden states and those of each utterance's expert, averaged.

    Args:
        model: with its teacher, and the loss of the layers.
        folder: a formatted set with texts.

    Returns:
        ``enc1``, ..., ``dec1``, ... -> mean over the utterances.
    """
    sums = Counter[str]()
    for batch in labelled_batches(model, folder):
        _, stats, weight = model(**batch)
        sums.update({name: float(value * weight) for name, value in stats.items() if name.startswith("cos_")})
        sums[""] += int(weight)
    return {name.removeprefix("cos_"): total / sums[""] for name, total in sums.items() if name}


@torch.no_grad()
def compare_outputs(model: ESPnetStudentModel, folder: Path) -> dict[str, float]:
    """Measure how certain the teacher is, and how often student and teacher predict the same token.

    Args:
        model: with its teacher.
        folder: a formatted set with texts, which both get as input.

    Returns:
        ``entropy`` of the teacher's outputs in nats per token, and ``agreement`` in percent of the tokens.
    """
    entropy, same, tokens = 0.0, 0, 0
    for batch in labelled_batches(model, folder):
        targets = make_targets(
            model.prompts, model.tokenizer.eot, batch["text"], batch["text_lengths"], batch["lang"][:, 0]
        )
        embedded = model.whisper.embed_speech(batch["speech"], batch["speech_lengths"])
        passes = (
            model.kd.run_student(embedded, targets.tokens),
            model.kd.run_teacher(embedded, targets.tokens, targets.experts),
        )
        student, teacher = (model.whisper.logits(targets.select(p.last)).float() for p in passes)  # (N, V)
        entropy += float(torch.distributions.Categorical(logits=teacher).entropy().sum())
        same += int((teacher.argmax(-1) == student.argmax(-1)).sum())
        tokens += len(teacher)
    return {"entropy": entropy / tokens, "agreement": 100.0 * same / tokens}


def gradient_norms(models: Mapping[str, ESPnetStudentModel], folder: Path) -> dict[str, float]:
    """Measure the norms of the gradients of the parts of a student's loss, averaged over batches.

    Args:
        models: kind of distillation -> a model of the same student with it. The gradient of ``none`` is that of the
            cross-entropy; it is subtracted from the others.
        folder: a formatted set with texts.

    Returns:
        Kind of distillation -> 2-norm over all parameters of the student.
    """
    norms: dict[str, list[float]] = {}
    for batch in labelled_batches(models["none"], folder):
        grads = {}
        for kd, model in models.items():
            trained = [model.get_parameter(name) for name in model.trained_names()]
            grads[kd] = torch.cat([g.flatten() for g in torch.autograd.grad(model(**batch)[0], trained)])
        for kd, grad in grads.items():
            norms.setdefault(kd, []).append(float((grad if kd == "none" else grad - grads["none"]).norm()))
    return {kd: sum(values) / len(values) for kd, values in norms.items()}


@torch.no_grad()
def pooled_states(whisper: Whisper, adapter: LoRAExperts | None, folders: Sequence[Path]) -> tuple[Tensor, list[str]]:
    """Average the encoder's last states over the frames of each utterance.

    Args:
        whisper: in evaluation mode.
        adapter: its only adapter, for all languages; None: the Whisper alone.
        folders: formatted sets.

    Returns:
        Shape (N, D), and the language of each utterance, in an order that does not depend on the system.

    Raises:
        ValueError: there are several adapters.
    """
    if adapter is not None and len(adapter.languages) > 1:
        raise ValueError(f"expected one adapter for all languages, got experts of {' '.join(adapter.languages)}")
    audio = [item for folder in folders for item in read_test_set(folder)]
    states, langs = [], []
    for rows, speech, lengths in load_batches(audio, whisper, BATCH_SECONDS):
        with nullcontext() if adapter is None else adapter.activate([0] * len(rows)):
            encoded = whisper.encode(speech, lengths)
        mask = encoded.mask  # (B, T)
        mask = torch.ones_like(encoded.states[..., 0]) if mask is None else mask.to(encoded.states)
        states.append(torch.einsum("btd,bt->bd", encoded.states, mask) / mask.sum(1, keepdim=True))  # (B, D)
        langs += [audio[row].language for row in rows]
    return torch.cat(states), langs


def project(states: Tensor) -> Tensor:
    """Project states (N, D) on their first two principal components, shape (N, 2)."""
    torch.manual_seed(0)  # torch.pca_lowrank starts from random vectors
    centred = states - states.mean(0)
    _, _, directions = torch.pca_lowrank(centred, q=min(6, *states.shape), center=False)
    return centred @ directions[:, :2]


def separability(states: Tensor, langs: Sequence[str]) -> float:
    """Return the percentage of utterances nearest to the mean of their language, computed without themselves.

    Args:
        states: shape (N, D), of at least two utterances of each language.
        langs: language of each.
    """
    codes = sorted(set(langs))
    own = torch.tensor([codes.index(lang) for lang in langs])  # (N,)
    chosen = torch.nn.functional.one_hot(own).to(states)  # (N, L)
    counts, sums = chosen.sum(0), chosen.T @ states  # (L,), (L, D)
    left_out = (sums[own] - states) / (counts[own] - 1)[:, None]  # (N, D): of the own language
    distances = torch.cdist(states, sums / counts[:, None])  # (N, L)
    distances[torch.arange(len(own)), own] = (states - left_out).norm(dim=1)
    return 100.0 * float((distances.argmin(1) == own).float().mean())

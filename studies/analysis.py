"""What happens inside trained systems, measured for pictures and studies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_lole.data.kaldi import read_table
from espnet_lole.espnet_model import IGNORE, AbsLoLEModel
from espnet_lole.espnet_student_model import ESPnetStudentModel
from espnet_lole.inference.longform import make_batches
from espnet_lole.inference.test_sets import Item, read_items
from espnet_lole.inference.transcriber import pad_speech
from espnet_lole.lole.bank import ExpertBank
from espnet_lole.whisper.model import Backbone

BATCH_SECONDS = 60.0


def read_batches(folders: Sequence[Path]) -> Iterator[tuple[list[Item], list[Tensor]]]:
    """The utterances of formatted sets and their samples, each of shape (S,), a batch of similar lengths at a time."""
    items = [item for folder in folders for item in read_items(folder)]
    for rows in make_batches([item.samples for item in items], BATCH_SECONDS):
        batch = [items[row] for row in rows]
        yield batch, [torch.from_numpy(soundfile.read(item.wav, dtype="float32")[0]) for item in batch]


def labelled_batches(model: AbsLoLEModel, folder: Path) -> Iterator[dict[str, Tensor]]:
    """The utterances of a formatted set with texts, as the arguments of ``model.forward``."""
    texts = read_table(folder / "text")
    for batch, speech in read_batches([folder]):
        samples, lengths = pad_speech(speech, model.backbone)
        text = [torch.tensor(model.tokens.encode(texts[item.utt], item.lang)) for item in batch]
        yield {
            "speech": samples,
            "speech_lengths": lengths,
            "text": pad_sequence(text, batch_first=True, padding_value=IGNORE),
            "text_lengths": torch.tensor([len(t) for t in text]),
            "lang": torch.tensor([[model.languages.index(item.lang)] for item in batch]),
        }


@torch.no_grad()
def layer_cosines(model: ESPnetStudentModel, folder: Path) -> dict[str, float]:
    """Mean cosine between a student's hidden states and those of each utterance's own expert.

    Args:
        model: with its teacher, and the loss of the layers.
        folder: a formatted set with texts.

    Returns:
        ``enc1``, ..., ``dec1``, ... -> mean over the utterances.
    """
    sums = Counter[str]()
    for batch in labelled_batches(model, folder):
        _, stats, weight = model(**batch)
        sums.update(
            {name: float(value * weight) for name, value in stats.items() if name.startswith("cos_")}
            | {"": int(weight)}
        )
    return {name.removeprefix("cos_"): total / sums[""] for name, total in sums.items() if name}


@torch.no_grad()
def compare_outputs(model: ESPnetStudentModel, folder: Path) -> dict[str, float]:
    """How sure the teacher is, and how often the student's likeliest token is the teacher's.

    Args:
        model: with its teacher.
        folder: a formatted set with texts, which both are given.

    Returns:
        ``entropy`` of the teacher's outputs in nats a token, and ``agreement`` in percent of the tokens.
    """
    sums = Counter[str]()
    for batch in labelled_batches(model, folder):
        language = batch["lang"][:, 0]
        inputs, targets = model.teacher_forcing(batch["text"], batch["text_lengths"], language)
        scores = []
        for bank, index in ((model.teacher, language), (model.student, torch.zeros_like(language))):
            with bank.routed(index):
                states = model.backbone.decode(inputs, model.backbone.encode(batch["speech"], batch["speech_lengths"]))
            scores.append(model.backbone.logits(states[targets != IGNORE]).float().log_softmax(-1))  # (N, V)
        teacher, student = scores
        same = (teacher.argmax(-1) == student.argmax(-1)).sum()
        sums.update(
            {"entropy": -float((teacher.exp() * teacher).sum()), "agreement": 100.0 * int(same), "": len(teacher)}
        )
    return {name: total / sums[""] for name, total in sums.items() if name}


def gradient_norms(models: Mapping[str, ESPnetStudentModel], folder: Path) -> dict[str, float]:
    """Norms of the gradients of the parts of a student's loss, the mean over batches.

    Args:
        models: distillation -> a model of the same student with it; ``none`` and others, whose gradient is told without that of
            ``none``, the cross-entropy.
        folder: a formatted set with texts.

    Returns:
        Distillation -> 2-norm over all parameters of the student.
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
def pooled_states(backbone: Backbone, adapter: ExpertBank | None, folders: Sequence[Path]) -> tuple[Tensor, list[str]]:
    """The encoder's last states, averaged over the frames of each utterance.

    Args:
        backbone: in evaluation mode.
        adapter: the one for all languages in it; None: as it is.
        folders: formatted sets.

    Returns:
        Shape (N, D), and the language of each utterance, in an order that does not depend on the system.
    """
    states, langs = [], []
    for batch, speech in read_batches(folders):
        samples, lengths = pad_speech(speech, backbone)
        with nullcontext() if adapter is None else adapter.routed(torch.zeros_like(lengths)):
            encoded = backbone.encode(samples, lengths)
        mask = (
            torch.ones_like(encoded.states[..., 0]) if encoded.mask is None else encoded.mask.to(encoded.states)
        )  # (B, T)
        states.append(torch.einsum("btd,bt->bd", encoded.states, mask) / mask.sum(1, keepdim=True))  # (B, D)
        langs += [item.lang for item in batch]
    return torch.cat(states), langs


def project(states: Tensor) -> Tensor:
    """The first two principal components of states (N, D), shape (N, 2)."""
    torch.manual_seed(0)  # torch.pca_lowrank starts from random vectors
    centred = states - states.mean(0)
    _, _, directions = torch.pca_lowrank(centred, q=min(6, *states.shape), center=False)
    return centred @ directions[:, :2]


def separability(states: Tensor, langs: Sequence[str]) -> float:
    """Percent of the utterances that are nearest to the mean of their own language, themselves left out of it.

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

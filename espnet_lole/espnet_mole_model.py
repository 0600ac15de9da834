"""LoRA MoLE as ESPnet trains it: fusion weights and the language classifier, on prepared experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet_lole.espnet_model import IGNORE, AbsLoLEModel, sum_by_expert
from espnet_lole.lole.classifier import StatisticsMemory
from espnet_lole.lole.mole import MoLE
from espnet_lole.train.distributed_mean import mean_over_ranks
from espnet_lole.whisper.tokenizer import WhisperTokens


class ESPnetMoLEModel(AbsLoLEModel):
    """Fusion weights and language classifier, trained with the mean cross-entropy of the text + lambda * that of the language.

    The text goes through the expert of its true language in the deep layers; its gradient reaches only the fusion weights.
    With a replay, the classifier learns from utterances of earlier batches too, each of which counts as one of the batch.

    Args:
        mole: the system on prepared experts.
        tokens: the backbone's tokens.
        lid_weight: lambda.

    Raises:
        ValueError: a class weight is of an unknown language, or not positive.
    """

    def __init__(self, mole: MoLE, tokens: WhisperTokens, lid_weight: float) -> None:
        class_weights = mole.classifier.config.class_weights
        if set(class_weights) - set(mole.bank.languages) or min(class_weights.values(), default=1.0) <= 0:
            raise ValueError(
                f"expected class_weights above 0 for languages of {' '.join(mole.bank.languages)}, got {class_weights}"
            )
        super().__init__(mole.backbone, mole.bank.languages, mole.bank.config, tokens)
        self.mole, self.bank = mole, mole.bank
        self.fusion, self.classifier = mole.fusion, mole.classifier
        self.lid_weight = lid_weight
        self.memory = StatisticsMemory()
        weights = torch.tensor([float(class_weights.get(lang, 1.0)) for lang in mole.bank.languages])
        self.register_buffer("class_weights", weights, persistent=False)  # (L,)
        self.fingerprints |= {"experts": mole.bank.fingerprint()}

    def start_epoch(self, epoch: int) -> None:
        """Forget the epoch before: a training that goes on after a stop is as one without."""
        self.memory.forget()

    @torch.no_grad()
    def start_from(self, state: Mapping[str, Tensor], languages: Sequence[str]) -> None:
        """Take over a MoLE of some of these languages; a new one starts with the mean of the others' fusion weights.

        Args:
            state: ``state_dict`` of the other, of the same fusion and classifier.
            languages: its languages.

        Raises:
            ValueError: it has a language that this one lacks, or parts of another shape.
        """
        if missing := sorted(set(languages) - set(self.bank.languages)):
            raise ValueError(
                f"expected a MoLE of some of the languages {' '.join(self.bank.languages)}, got one of {missing} too"
            )
        rows = torch.tensor([self.bank.languages.index(lang) for lang in languages])
        last = f"classifier.mlp.{len(self.classifier.mlp) - 1}"
        for name, p in self.learned().items():
            axis = {"fusion.raw": 2, f"{last}.weight": 0, f"{last}.bias": 0}.get(name)
            before = state[name].to(p)
            shape = list(p.shape)
            if axis is not None:
                shape[axis] = len(languages)
            if list(before.shape) != shape:
                raise ValueError(f"expected {name} of shape {shape} in the MoLE to start from, got {list(before.shape)}")
            if axis is None:
                p.copy_(before)
                continue
            if name == "fusion.raw":
                p.copy_(before.mean(axis, keepdim=True).expand_as(p))
            p.index_copy_(axis, rows.to(p.device), before)

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, lang: Tensor, **_: Any
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss of a batch; arguments and results as in ``ESPnetExpertModel.forward``."""
        expert = lang[:, 0]
        shallow = self.mole.shallow(speech, speech_lengths)
        statistics = self.classifier.pool(shallow)
        scores = self.classifier.score(statistics)  # (B, E)
        inputs, targets = self.teacher_forcing(text, text_lengths, expert)
        with self.bank.routed(expert):
            states = self.backbone.decode(inputs, self.mole.deep(shallow))
        chosen = targets != IGNORE
        costs, hits = self.backbone.token_costs(states[chosen], targets[chosen])
        tokens, utterances = hits.new_tensor(len(hits)), hits.new_tensor(len(expert))
        found = (scores.argmax(1) == expert).float()
        parts = {
            "loss_asr": (costs.sum(), tokens),
            "loss_lid": self._language_cost(statistics, scores, expert),
            "acc": (hits.sum(), tokens),
            "lid_acc": (found.sum(), utterances),
        }
        by_language = zip(*sum_by_expert(found, expert, len(self.languages)), strict=True)
        parts |= {f"lid_acc_{code}": part for code, part in zip(self.languages, by_language, strict=True)}
        means = mean_over_ranks(parts, len(expert))
        loss, total = (of["loss_asr"] + self.lid_weight * of["loss_lid"] for of in (means.losses, means.stats))
        weights = self.fusion.weights().detach().mean((0, 1))  # (E,), NaN without fused layers
        stats = {"loss": total} | means.stats
        stats |= {f"fusion_{code}": value for code, value in zip(self.languages, weights, strict=True)}
        return loss, stats, means.weight

    def _language_cost(self, statistics: Tensor, scores: Tensor, language: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and count of the weighted cross-entropy of a batch's statistics (B, S), scores (B, E) and languages (B,)."""
        config, weights = self.classifier.config, self.class_weights
        if self.training and config.replay:
            self.memory.add(statistics, language)
            again, of_language = self.memory.draw(config.replay)
            scores, language = torch.cat([scores, self.classifier.score(again)]), torch.cat([language, of_language])
        smoothing = config.label_smoothing if self.training else 0.0
        return F.cross_entropy(scores, language, weights, reduction="sum", label_smoothing=smoothing), weights[language].sum()

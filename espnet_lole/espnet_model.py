"""The models that ESPnet trains: a frozen Whisper with the experts of all languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor
from torch.nn import functional as F

from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.train.distributed_mean import mean_over_ranks
from espnet_lole.whisper.checkpoint import add_fingerprints, check_fingerprints, fingerprint
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

IGNORE = -1
"""Marks padded text (ESPnet's collate function) and targets without a loss."""


class AbsLoLEModel(AbsESPnetModel):
    """What the systems share: prompts, features, and checkpoints without what is frozen.

    Args:
        backbone: the Whisper, with its adapters.
        languages: codes of the trained languages, in the order of their index.
        config: shape of the adapters; None: there are none.
        tokens: the backbone's tokens.
    """

    def __init__(self, backbone: Backbone, languages: Sequence[str], config: ExpertConfig | None, tokens: WhisperTokens) -> None:
        super().__init__()
        self.backbone = backbone
        self.languages = tuple(languages)
        self.adapter_config = config
        self.tokens = tokens
        self.fingerprints = {"backbone": fingerprint(backbone)}
        """Digest of each frozen part, which a checkpoint must have."""
        prompts = torch.tensor([tokens.prompt(lang) for lang in languages])
        self.register_buffer("prompts", prompts, persistent=False)  # (L, 4)
        ids = torch.tensor([tokens.language(lang) for lang in languages])
        self.register_buffer("language_ids", ids, persistent=False)  # (L,)

    def teacher_forcing(self, text: Tensor, lengths: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the decoder, both (B, 4 + U): prompt and text; text and end, without loss on the prompt."""
        prompts = self.prompts[expert]  # (B, 4)
        padded = F.pad(text, (0, 1), value=IGNORE)
        ends = padded.scatter(1, lengths[:, None], self.tokens.end)  # (B, U + 1)
        inputs = torch.cat([prompts, text.masked_fill(text == IGNORE, self.tokens.end)], dim=1)
        return inputs, torch.cat([torch.full_like(prompts[:, 1:], IGNORE), ends], dim=1)

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 1; nothing to do here."""

    def prompt_parts(self, states: Tensor, costs: Tensor, hits: Tensor, language: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and count of the loss of systems that find the language by Whisper's language token, and of their accuracies.

        Args:
            states: the decoder's at each target, those of the language last (see ``text_then_language``), shape (N, D).
            costs: cross-entropy of each target, shape (N,).
            hits: whether it is the likeliest token, shape (N,).
            language: index of each utterance's language, shape (B,).

        Returns:
            The cross-entropy of language, text and end; the accuracies of the text and of the language.
        """
        of_text = len(hits) - len(language)
        with torch.no_grad(), self.backbone.autocast():
            of_language = self.backbone.model.proj_out.weight[self.language_ids]  # (L, D)
            found = F.linear(states[of_text:].to(of_language.dtype), of_language).argmax(1) == language
        return {
            "loss_asr": (costs.sum(), hits.new_tensor(len(hits))),
            "acc": (hits[:of_text].sum(), hits.new_tensor(of_text)),
            "lid_acc": (found.float().sum(), hits.new_tensor(len(language))),
        }

    def collect_feats(self, speech: Tensor, speech_lengths: Tensor, **_: Any) -> dict[str, Tensor]:
        """Log-mel features (B, F, M) and their lengths (B,), for ESPnet's statistics."""
        mel, frames = self.backbone.features(speech, speech_lengths)
        return {"feats": mel.transpose(1, 2), "feats_lengths": frames}

    def trained_names(self) -> list[str]:
        """Names of the parameters that train."""
        return [name for name, p in self.named_parameters() if p.requires_grad]

    def learned(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the parameters that train, and persistent buffers."""
        state = super().state_dict()
        buffers = (name for name, _ in self.named_buffers() if name in state)
        return {name: state[name] for name in (*self.trained_names(), *buffers)}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What was learned, and the fingerprints of what is frozen, which is left out."""
        return add_fingerprints(self.learned(), self.fingerprints)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load what ``state_dict`` gave; compares every name, whatever ``strict`` says.

        Raises:
            ValueError: the checkpoint is of another backbone, of other experts, or of a system of another shape.
        """
        state = dict(state_dict)
        check_fingerprints(state, self.fingerprints)
        expected = {name: value.shape for name, value in self.learned().items()}
        got = {name: value.shape for name, value in state.items()}
        if wrong := sorted(n for n in expected | got if expected.get(n) != got.get(n)):
            raise ValueError(
                f"expected a checkpoint for the languages {' '.join(self.languages)} and {self.adapter_config or 'no adapters'}, "
                f"got another in {len(wrong)} tensors, e.g. {wrong[0]}: {got.get(wrong[0])} instead of {expected.get(wrong[0])}"
            )
        return super().load_state_dict(state, strict=False, assign=assign)


class ESPnetExpertModel(AbsLoLEModel):
    """Language experts trained together, each on its own language.

    The loss of a batch is the sum over its languages of the mean cross-entropy over that language's target tokens, so that
    each expert gets the gradient that it would get alone. With several processes the means are over the tokens of all.

    Args:
        backbone: the Whisper, with the bank's experts in it.
        bank: the experts.
        tokens: the backbone's tokens.
    """

    def __init__(self, backbone: Backbone, bank: ExpertBank, tokens: WhisperTokens) -> None:
        super().__init__(backbone, bank.languages, bank.config, tokens)
        self.bank = bank
        for layer in bank.layers.values():
            layer.lora_A.requires_grad_(True)
            layer.lora_B.requires_grad_(True)

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, lang: Tensor, **_: Any
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss of a batch.

        Args:
            speech: samples at 16 kHz, shape (B, S).
            speech_lengths: shape (B,).
            text: token ids without prompt and end, padded with -1, shape (B, U).
            text_lengths: shape (B,).
            lang: index of each utterance's language, shape (B, 1).

        Returns:
            The loss, the figures for the log, and the batch's weight, its number of utterances (see ``BatchMeans``).
        """
        expert = lang[:, 0]
        inputs, targets = self.teacher_forcing(text, text_lengths, expert)
        with self.bank.routed(expert):
            states = self.backbone.decode(inputs, self.backbone.encode(speech, speech_lengths))
        chosen = targets != IGNORE
        costs, hits = self.backbone.token_costs(states[chosen], targets[chosen])
        owner = expert[:, None].expand_as(targets)[chosen]  # (N,)
        sums, counts = sum_by_expert(costs, owner, len(self.bank.languages))
        right, _ = sum_by_expert(hits, owner, len(self.bank.languages))
        parts = {"loss": (sums.detach().sum(), counts.sum()), "acc": (right.sum(), counts.sum())}
        for code, cost, hit, count in zip(self.bank.languages, sums, right, counts, strict=True):
            parts |= {f"loss_{code}": (cost, count), f"acc_{code}": (hit, count)}
        means = mean_over_ranks(parts, len(expert))
        return sum(means.losses[f"loss_{code}"] for code in self.bank.languages), means.stats, means.weight


def text_then_language(values: Tensor, targets: Tensor) -> Tensor:
    """Values (B, U, ...) at the targets (B, U): those of text and end, then of the first column, the languages; (N, ...)."""
    return torch.cat([values[:, 1:][targets[:, 1:] != IGNORE], values[:, 0]])


def sum_by_expert(values: Tensor, owner: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """(sum, count) of values (N,) for each expert, both (E,), given each value's expert, shape (N,)."""
    zeros = values.new_zeros(num_experts)
    return zeros.index_add(0, owner, values), zeros.index_add(0, owner, torch.ones_like(values))


def describe(model: AbsLoLEModel) -> str:
    """How many parameters train, in words."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return f"{trained:,} of {total:,} parameters train ({100 * trained / total:.1f} %), languages {' '.join(model.languages)}"

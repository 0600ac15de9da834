"""Sums of losses and accuracies over a batch, with their counts, of which the means over all processes are taken."""

from __future__ import annotations

from torch import Tensor, ones_like

from espnet_lole.train.targets import Targets
from espnet_lole.whisper.loss import token_cross_entropy

Sums = dict[str, tuple[Tensor, Tensor]]
"""Name of a loss or an accuracy -> the sum of its values in a batch, and their number."""


def sum_with_language(logits: Tensor, targets: Targets, language_tokens: Tensor) -> Sums:
    """Sum cross-entropy and accuracies of a system that predicts text, end and language token.

    Args:
        logits: at each label, shape (N + B, V).
        targets: with the language.
        language_tokens: of the trained languages, shape (L,).
    """
    loss, correct = token_cross_entropy(logits, targets.labels)
    num_text = targets.num_text
    predicted = logits[num_text:, language_tokens].argmax(1)  # the likeliest of the trained languages, (B,)
    return {
        "loss_asr": (loss.sum(), loss.new_tensor(len(loss))),
        "acc": (correct[:num_text].sum(), loss.new_tensor(num_text)),
        "lid_acc": ((predicted == targets.language).float().sum(), loss.new_tensor(len(predicted))),
    }


def sum_by_language(values: Tensor, owner: Tensor, num_languages: int) -> tuple[Tensor, Tensor]:
    """Sum and count values (N,) for each language, both (L,), given the index of each value's language, shape (N,)."""
    zeros = values.new_zeros(num_languages)
    return zeros.index_add(0, owner, values), zeros.index_add(0, owner, ones_like(values))

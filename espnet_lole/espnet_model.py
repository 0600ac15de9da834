"""The models that ESPnet trains: a Whisper with language experts, LoRA MoLE, LoRA KD, and full fine-tuning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.export.transformers import FILES, save_whisper_model
from espnet_lole.lole.adapters import save_adapter
from espnet_lole.lole.experts import LoRAExperts
from espnet_lole.lole.kd import STUDENT, LoRAKD, js_divergence
from espnet_lole.lole.mole import MoLE
from espnet_lole.lole.mole_weights import MOLE_WEIGHTS, save_trained
from espnet_lole.lole.replay import StatisticsMemory
from espnet_lole.train.checkpoints import check_state
from espnet_lole.train.distributed_mean import distributed_means
from espnet_lole.train.sums import Sums, sum_by_language, sum_with_language
from espnet_lole.train.targets import Targets, make_targets
from espnet_lole.whisper.checkpoint import fingerprint
from espnet_lole.whisper.features import length_mask
from espnet_lole.whisper.loss import token_cross_entropy
from espnet_lole.whisper.model import FILLS, Encoded, Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer


class AbsLoLEModel(AbsESPnetModel):
    """Prompts, labels, and checkpoints without what is frozen.

    Args:
        whisper: the backbone, with its adapters.
        languages: codes of the trained languages, in the order of their index.
        fingerprints: digests of the frozen parts, for every checkpoint; None: of the backbone.
    """

    def __init__(
        self, whisper: Whisper, languages: Sequence[str], fingerprints: Mapping[str, int] | None = None
    ) -> None:
        super().__init__()
        self.whisper = whisper
        self.languages = tuple(languages)
        self.tokenizer = WhisperTokenizer(whisper.model.config.vocab_size)
        prompts = torch.tensor([self.tokenizer.prompt(lang) for lang in languages])
        self.register_buffer("prompts", prompts, persistent=False)  # (L, 4)
        self.fingerprints = fingerprints or {"backbone": fingerprint(whisper)}
        for part, value in self.fingerprints.items():
            self.register_buffer(f"{part}_fingerprint", torch.tensor(value, dtype=torch.float64))  # exact up to 2**53
        self._batches = 0

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, lang: Tensor, **_: Any
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Compute the loss of a batch.

        Args:
            speech: samples at 16 kHz, shape (B, S).
            speech_lengths: shape (B,).
            text: token ids without prompt and end, padded with -1, shape (B, U).
            text_lengths: shape (B,).
            lang: index of each utterance's language, shape (B, 1).

        Returns:
            The loss, the figures for the log, and the batch's weight (see ``DistributedMeans``).
        """
        # 1. Prompt, text and labels
        targets = make_targets(self.prompts, self.tokenizer.eot, text, text_lengths, lang[:, 0])
        # 2. Features and convolutions
        fill = self.next_fill()
        embedded = self.whisper.embed_speech(speech, speech_lengths, fill)
        as_decoded = self.whisper.embed_speech(speech, speech_lengths) if fill else embedded
        # 3. Encoder, decoder, and the sum of each loss
        sums = self.compute_losses(embedded, targets, as_decoded)
        # 4. Means over the batches of all processes, and the loss of the system
        means = distributed_means(sums, len(lang))
        loss, stats = self.total_loss(means.losses), self.log(means.stats)
        return force_gatherable((loss, stats, means.weight), loss.device)

    def encode(self, speech: Tensor, speech_lengths: Tensor, lang: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the encoder, as the models of ESPnet do.

        Args:
            speech: samples at 16 kHz, shape (B, S).
            speech_lengths: shape (B,).
            lang: index of each utterance's language, shape (B, 1); experts need it, MoLE's classifier can find it.

        Returns:
            States of the encoder, shape (B, T, D), and their number for each utterance, shape (B,).
        """
        # 1. Features and convolutions
        embedded = self.whisper.embed_speech(speech, speech_lengths)
        # 2. Encoder layers
        encoded = self.run_encoder(embedded, None if lang is None else lang[:, 0])
        # 3. Lengths
        if encoded.mask is None:
            return encoded.states, torch.full_like(speech_lengths, encoded.states.shape[1])
        return encoded.states, encoded.mask.sum(1)

    def run_encoder(self, embedded: Encoded, language: Tensor | None) -> Encoded:
        """Run the encoder's layers, given the index of each utterance's language, shape (B,), or None."""
        return self.whisper.finish(embedded)

    @abstractmethod
    def compute_losses(self, embedded: Encoded, targets: Targets, teacher_input: Encoded) -> Sums:
        """Compute sum and count of each loss and accuracy.

        Args:
            embedded: input of encoder layer 1.
            targets: what the decoder reads and predicts.
            teacher_input: the same speech with the padding of decoding, which a teacher reads.
        """

    def next_fill(self) -> str | None:
        """Return how the next batch is padded to 30 s, or None: evenly over an epoch, and the same on all ranks."""
        if not self.training:
            return None
        self._batches += 1
        before, now = (int(batches * self.whisper.share_30s) for batches in (self._batches - 1, self._batches))
        return FILLS[now % len(FILLS)] if now > before else None

    @abstractmethod
    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Combine the means of ``compute_losses`` to the loss of the system."""

    def log(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the figures for the log: the means of ``compute_losses``, and the total loss unless they have one."""
        return {"loss": self.total_loss(means), **means}

    def start_epoch(self, epoch: int, max_epoch: int) -> None:
        """Prepare for an epoch, counted from 1 to ``max_epoch``."""
        self._batches = 0

    @abstractmethod
    def save_trained(self, folder: Path, langs: Sequence[str], backbone: str) -> None:
        """Write what was trained into the folder of the training, in the form that decoding and export read."""

    def collect_feats(self, speech: Tensor, speech_lengths: Tensor, **_: Any) -> dict[str, Tensor]:
        """Compute log-mel features (B, F, M) and their lengths (B,), for ESPnet's statistics."""
        mel, frames = self.whisper.features(speech, speech_lengths)
        return {"feats": mel.transpose(1, 2), "feats_lengths": frames}

    def trained_names(self) -> list[str]:
        """Return the names of the parameters that train."""
        return [name for name, p in self.named_parameters() if p.requires_grad]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return what a checkpoint holds: the parameters that train, and persistent buffers."""
        state = super().state_dict()
        buffers = (name for name, _ in self.named_buffers() if name in state)
        return {name: state[name] for name in (*self.trained_names(), *buffers)}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load what ``state_dict`` returned; every name is compared, whatever ``strict`` says.

        Raises:
            ValueError: the checkpoint is of another backbone, of other experts, or of a system of another shape.
        """
        check_state(state_dict, self.state_dict(), self.fingerprints, self.languages)
        return super().load_state_dict(state_dict, strict=False, assign=assign)


class ESPnetExpertsModel(AbsLoLEModel):
    """Language experts trained together, each on its own language.

    The loss of a batch is the sum over its languages of the mean cross-entropy over that language's labels, so that
    each expert gets the gradient that it would get alone. With several processes the means are over the labels of all.

    Args:
        experts: on their Whisper.
        languages: codes of the trained languages, in the order of their index.
    """

    def __init__(self, experts: LoRAExperts, languages: Sequence[str]) -> None:
        super().__init__(experts.whisper, languages)
        self.experts = experts

    def run_encoder(self, embedded: Encoded, language: Tensor | None) -> Encoded:
        """Run the encoder through the experts of the languages.

        Raises:
            ValueError: the languages are not given.
        """
        if language is None:
            raise ValueError("experts need the language of each utterance: give lang, their index, shape (B, 1)")
        with self.experts.activate(language):
            return self.whisper.finish(embedded)

    def compute_losses(self, embedded: Encoded, targets: Targets, teacher_input: Encoded) -> Sums:
        """Sum the cross-entropy and the correct tokens of each language."""
        # 1. Encoder and decoder, through the expert of each utterance
        with self.experts.activate(targets.experts):
            states = self.whisper.decode(targets.tokens, self.whisper.finish(embedded))
        # 2. Cross-entropy of the labels
        loss, correct = token_cross_entropy(self.whisper.logits(targets.select(states)), targets.labels)
        # 3. Sums of each language, and of all for the log
        owner = targets.language[targets.index // targets.tokens.shape[1]]  # (N,)
        losses, counts = sum_by_language(loss, owner, len(self.languages))
        accuracies, _ = sum_by_language(correct, owner, len(self.languages))
        sums = {"loss": (losses.detach().sum(), counts.sum()), "acc": (accuracies.sum(), counts.sum())}
        for i, lang in enumerate(self.languages):
            sums |= {f"loss_{lang}": (losses[i], counts[i]), f"acc_{lang}": (accuracies[i], counts[i])}
        return sums

    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Add up the languages: ``L = sum_e L_e``; the log has the mean over all labels instead."""
        return sum(losses[f"loss_{lang}"] for lang in self.languages)

    def save_trained(self, folder: Path, langs: Sequence[str], backbone: str) -> None:
        """Write ``adapters/<language>`` of these languages."""
        for lang in langs:
            save_adapter(self.experts, lang, folder / "adapters" / lang, backbone)


class ESPnetMoLEModel(AbsLoLEModel):
    """LoRA MoLE: fusion weights and language classifier, ``L = L_ASR + lambda L_LID``.

    The text goes through the expert of its true language in the deep layers; its gradient reaches only the fusion
    weights.

    Args:
        mole: on prepared experts.
        languages: codes of the trained languages, in the order of their index.
        lid_weight: lambda.
    """

    def __init__(self, mole: MoLE, languages: Sequence[str], lid_weight: float = 1.0) -> None:
        super().__init__(mole.experts.whisper, languages, mole.fingerprints)
        self.mole, self.lid_weight, self.memory = mole, lid_weight, StatisticsMemory()

    def start_epoch(self, epoch: int, max_epoch: int) -> None:
        """Forget the statistics of the epoch before, so that a resumed training is as one without a stop."""
        super().start_epoch(epoch, max_epoch)
        self.memory.clear()

    def run_encoder(self, embedded: Encoded, language: Tensor | None) -> Encoded:
        """Run the shared layers, then the deep ones through the experts of the given or identified languages."""
        shallow, _, language_logits = self.mole.frontend(embedded)
        with self.mole.experts.activate(language_logits.argmax(1) if language is None else language):
            return self.mole.encode_deep(shallow)

    def compute_losses(self, embedded: Encoded, targets: Targets, teacher_input: Encoded) -> Sums:
        """Sum the cross-entropies of text and language, and the accuracies."""
        language = targets.language
        # 1. Shared layers and language classifier
        shallow, statistics, language_logits = self.mole.frontend(embedded)
        # 2. Deep layers and decoder, through the expert of the true language
        with self.mole.experts.activate(targets.experts):
            states = self.whisper.decode(targets.tokens, self.mole.encode_deep(shallow))
        # 3. Losses of text and language
        loss, correct = token_cross_entropy(self.whisper.logits(targets.select(states)), targets.labels)
        lid_correct = (language_logits.argmax(1) == language).float()
        tokens, utterances = loss.new_tensor(len(loss)), loss.new_tensor(len(language))
        sums = {
            "loss_asr": (loss.sum(), tokens),
            "loss_lid": self._lid_loss(statistics, language_logits, language),
            "acc": (correct.sum(), tokens),
            "lid_acc": (lid_correct.sum(), utterances),
        }
        by_language = zip(*sum_by_language(lid_correct, language, len(self.languages)), strict=True)
        return sums | {f"lid_acc_{lang}": pair for lang, pair in zip(self.languages, by_language, strict=True)}

    def _lid_loss(self, statistics: Tensor, logits: Tensor, language: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the classifier's loss of a batch and, in training, of statistics replayed from earlier batches."""
        classifier = self.mole.frontend.classifier
        if self.training and classifier.config.replay:
            self.memory.add(statistics, language)
            replayed, replayed_language = self.memory.draw(classifier.config.replay)
            logits = torch.cat([logits, classifier.classify(replayed)])
            language = torch.cat([language, replayed_language])
        return classifier.loss(logits, language)

    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Add up text and language: ``L = L_ASR + lambda L_LID``."""
        return losses["loss_asr"] + self.lid_weight * losses["loss_lid"]

    def log(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the figures for the log, among them the mean fusion weight of each language."""
        stats = super().log(means)
        if fused := self.mole.frontend.fused.values():
            weights = torch.stack([layer.weights.detach() for layer in fused]).mean((0, 1))  # (E,)
            stats |= {f"fusion_{lang}": weight for lang, weight in zip(self.languages, weights, strict=True)}
        return stats

    def save_trained(self, folder: Path, langs: Sequence[str], backbone: str) -> None:
        """Write ``mole.safetensors``."""
        save_trained(self.mole, folder / MOLE_WEIGHTS)


class ESPnetStudentModel(AbsLoLEModel):
    """LoRA KD: one LoRA for all languages, ``L = L_ASR + f (w_layers L_layers + w_logits L_logits)``.

    ``L_ASR`` counts language, text and end. ``f`` is the schedule of the epochs. Without a teacher ``L = L_ASR``.

    Args:
        kd: student and teacher; without a teacher this is the usual multilingual LoRA.
        languages: codes of the trained languages, in the order of their index.
    """

    def __init__(self, kd: LoRAKD, languages: Sequence[str]) -> None:
        super().__init__(kd.student.whisper, languages)
        self.kd, self.kd_factor = kd, 1.0

    def start_epoch(self, epoch: int, max_epoch: int) -> None:
        """Move the factor of distillation linearly from 1 in the first epoch to ``final_factor`` in the last."""
        super().start_epoch(epoch, max_epoch)
        progress = (epoch - 1) / max(max_epoch - 1, 1)
        self.kd_factor = 1.0 + progress * (self.kd.config.final_factor - 1.0)

    def run_encoder(self, embedded: Encoded, language: Tensor | None) -> Encoded:
        """Run the encoder through the student, whatever the languages."""
        with self.kd.student.activate([0] * len(embedded.states)):
            return self.whisper.finish(embedded)

    def compute_losses(self, embedded: Encoded, targets: Targets, teacher_input: Encoded) -> Sums:
        """Sum the cross-entropy of the student, and its distances from the teacher."""
        kd, num_text = self.kd, targets.num_text
        # 1. Student: text, end and language token
        targets = targets.with_language(self.prompts[targets.language, 1])
        student = kd.run_student(embedded, targets.tokens)
        logits = self.whisper.logits(targets.select(student.last))
        sums = sum_with_language(logits, targets, self.prompts[:, 1])
        if kd.teacher is None:
            return sums
        # 2. Teacher: the expert of each utterance
        teacher = kd.run_teacher(teacher_input, targets.tokens, targets.experts)
        # 3. Distances of the outputs, without the language, which the teacher does not predict, and of the layers
        if kd.with_logits:
            teacher_logits = self.whisper.logits(targets.select(teacher.last)[:num_text])
            divergence = js_divergence(logits[:num_text], teacher_logits, kd.config.temperature)
            sums["loss_logits"] = divergence.sum(), divergence.new_tensor(num_text)
        masks = {"encoder": teacher_input.mask, "decoder": length_mask(targets.lengths, targets.tokens.shape[1])}
        return sums | {f"loss_{name}": pair for name, pair in kd.layer_losses(student, teacher, masks).items()}

    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Add up text and distillation: ``L = L_ASR + f (w_layers L_layers + w_logits L_logits)``."""
        config, loss = self.kd.config, losses["loss_asr"]
        if self.kd.with_layers:
            loss = loss + self.kd_factor * config.layer_weight * self._layer_mean(losses)
        if self.kd.with_logits:
            loss = loss + self.kd_factor * config.logit_weight * losses["loss_logits"]
        return loss

    def _layer_mean(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([losses[f"loss_{name}"] for name in self.kd.compared]).mean()

    def log(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the figures for the log, with the cosine of each compared layer instead of its loss."""
        stats = super().log(means)
        cosines = {f"cos_{name}": 1.0 - stats.pop(f"loss_{name}") for name in self.kd.compared}
        return stats | ({"loss_layers": self._layer_mean(means)} if cosines else {}) | cosines

    def save_trained(self, folder: Path, langs: Sequence[str], backbone: str) -> None:
        """Write ``adapters/student``."""
        save_adapter(self.kd.student, STUDENT, folder / "adapters" / STUDENT, backbone)


class ESPnetFullModel(AbsLoLEModel):
    """Full fine-tuning, ``L = L_ASR`` of language, text and end.

    Every weight of the Whisper trains but the encoder's positions, a fixed table of sines.

    Args:
        whisper: the Whisper.
        languages: codes of the trained languages, in the order of their index.

    Raises:
        ValueError: the Whisper stores its matrices in less than float32, too coarse for the steps of a training.
    """

    def __init__(self, whisper: Whisper, languages: Sequence[str]) -> None:
        if whisper.precision != torch.float32:
            raise ValueError(
                f"expected precision: float32 for full fine-tuning, got {whisper.precision}: its weights train; "
                "use_amp: true runs the products in less"
            )
        super().__init__(whisper.requires_grad_(True), languages)
        whisper.encoder.embed_positions.requires_grad_(False)

    def compute_losses(self, embedded: Encoded, targets: Targets, teacher_input: Encoded) -> Sums:
        """Sum the cross-entropy and the accuracies."""
        targets = targets.with_language(self.prompts[targets.language, 1])
        states = self.whisper.decode(targets.tokens, self.whisper.finish(embedded))
        return sum_with_language(self.whisper.logits(targets.select(states)), targets, self.prompts[:, 1])

    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return ``L = L_ASR``."""
        return losses["loss_asr"]

    def save_trained(self, folder: Path, langs: Sequence[str], backbone: str) -> None:
        """Write ``whisper/``, a Whisper of ``transformers``."""
        with atomic_folder(folder / "whisper", known=FILES) as made:
            save_whisper_model(self.whisper, made, self.languages)

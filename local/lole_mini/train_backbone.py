"""Train the small backbone `whisper-nano` from random weights on synthetic speech of the domain `atlas`.

    PYTHONPATH=local:. python -m lole_mini.train_backbone --output models/whisper-nano

The speech is synthesized first. Takes about 70 minutes on 2 cores with bfloat16 instructions, much longer without them.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperConfig, WhisperForConditionalGeneration

from espnet_lole.whisper.features import SAMPLE_RATE, LogMel
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer
from lole_mini.sentences import LANGUAGES
from lole_mini.speech import VARIANTS, split_texts, utterances

CTC_WEIGHT = 0.3
TEMPORAL_MASK, MEL_MASK = 25, 12  # widest masks of SpecAugment, in frames and mel bins


@dataclass(frozen=True)
class Example:
    """A training example: mel features (M, F) in float16, token ids (U,) from sot to eot, characters (C,) for CTC."""

    mel: Tensor
    tokens: Tensor
    characters: Tensor


def nano_config() -> WhisperConfig:
    """Return the configuration of `whisper-nano`: Whisper's vocabulary and features, 6 + 2 narrow layers."""
    return WhisperConfig(
        d_model=192, encoder_layers=6, decoder_layers=2, encoder_attention_heads=3, decoder_attention_heads=3,
        encoder_ffn_dim=768, decoder_ffn_dim=768, vocab_size=51865, num_mel_bins=80,
        bos_token_id=50257, eos_token_id=50257, pad_token_id=50257, decoder_start_token_id=50258,
        suppress_tokens=None, begin_suppress_tokens=None, pad_to="none",
    )  # fmt: skip


def speak_language(job: tuple[str, int]) -> list[tuple[str, str, np.ndarray]]:
    """Synthesize the utterances (language, text, mel features (M, F)) of one language."""
    lang, size = job
    torch.set_num_threads(1)
    features, made = LogMel(), []
    texts = split_texts("atlas", lang, {"backbone": size})["backbone"]
    for utterance in utterances("atlas", "backbone", lang, texts, 4 * len(VARIANTS["backbone"])):
        speech = torch.from_numpy(utterance.speech)[None, : 12 * SAMPLE_RATE]
        mel, _ = features(speech, torch.tensor([speech.shape[1]]))
        made.append((lang, utterance.text, mel[0].half().numpy()))
    return made


def make_examples(per_language: int, tokenizer: WhisperTokenizer) -> tuple[list[Example], dict[str, int]]:
    """Make all training examples, and the index of each character for CTC (0 is the blank)."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        made = [u for part in pool.map(speak_language, [(lang, per_language) for lang in LANGUAGES]) for u in part]
    characters = {c: i for i, c in enumerate(sorted({c for _, text, _ in made for c in text}), 1)}
    return [
        Example(
            torch.from_numpy(mel),
            torch.tensor([*tokenizer.prompt(lang), *tokenizer.encode(text, lang), tokenizer.eot]),
            torch.tensor([characters[c] for c in text]),
        )
        for lang, text, mel in made
    ], characters


def batches(examples: list[Example], seconds: float, rng: random.Random) -> list[list[Example]]:
    """Group examples by length into batches of at most `seconds` of audio, padding included, in random order."""
    grouped, batch = [], []
    for example in sorted(examples, key=lambda e: e.mel.shape[1] * rng.uniform(0.9, 1.1)):
        longest = max(e.mel.shape[1] for e in [*batch, example])
        if batch and longest * (len(batch) + 1) > 100 * seconds:
            grouped.append(batch)
            batch = []
        batch.append(example)
    grouped.append(batch)
    rng.shuffle(grouped)
    return grouped


def mask_features(mel: Tensor, frames: Tensor, rng: random.Random) -> Tensor:
    """Mask mel (B, M, F) as in SpecAugment: two masks along each axis, the same mel bins for the whole batch."""
    for _ in range(2):
        low = rng.randrange(mel.shape[1] - MEL_MASK)
        mel[:, low : low + rng.randrange(MEL_MASK + 1)] = 0.0
        for row, length in enumerate(frames.tolist()):
            start = rng.randrange(length)
            mel[row, :, start : start + rng.randrange(min(TEMPORAL_MASK, length // 10) + 1)] = 0.0
    return mel


def batch_loss(
    model: Whisper, ctc: nn.Linear, vocabulary: SampledVocabulary, batch: list[Example], rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Compute the mean cross-entropy of language and text tokens, and the auxiliary CTC loss."""
    frames = torch.tensor([e.mel.shape[1] for e in batch])
    mel = pad_sequence([e.mel.T for e in batch], batch_first=True).transpose(1, 2).float()  # (B, M, F)
    tokens = pad_sequence([e.tokens for e in batch], batch_first=True, padding_value=-100)  # (B, U)
    x = model.embed_mel(mask_features(mel, frames, rng), frames)
    x = model.encode_layers(x, 0, len(model.encoder.layers))
    encoded = type(x)(model.encoder.layer_norm(x.states), x.mask)
    log_probs = ctc(encoded.states).float().log_softmax(-1).transpose(0, 1)  # (T, B, C)
    characters = torch.cat([e.characters for e in batch])
    sizes = torch.tensor([len(e.characters) for e in batch])
    helper = F.ctc_loss(log_probs, characters, (frames + 1) // 2, sizes, zero_infinity=True)
    targets = tokens[:, 1:].clone()
    targets[:, 1:3] = -100  # <|transcribe|><|notimestamps|> are always given
    chosen = targets != -100
    states = model.decode(tokens[:, :-1].clamp(min=0), encoded)[chosen]  # (N, D)
    return vocabulary.loss(states, model.model.proj_out.weight, targets[chosen]), helper


class SampledVocabulary:
    """Cross-entropy over the tokens of the corpus and a random sample of the others (importance sampling).

    Args:
        examples: the corpus.
        size: V.
        sample: number of tokens to draw from those that never occur.
    """

    def __init__(self, examples: list[Example], size: int, sample: int = 1024) -> None:
        self.used = torch.unique(torch.cat([e.tokens for e in examples]))
        occurs = torch.zeros(size, dtype=torch.bool).index_fill(0, self.used, True)
        self.unused = (~occurs).nonzero()[:, 0]
        self.place = occurs.cumsum(0) - 1  # index of a used token among the used ones
        self.sample = sample

    def loss(self, states: Tensor, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean cross-entropy of states (N, D) against used tokens (N,), with embeddings (V, D)."""
        drawn = self.unused[torch.randint(len(self.unused), (self.sample,))]
        logits = states @ embeddings[torch.cat([self.used, drawn])].T.to(states.dtype)
        weight = torch.zeros(logits.shape[1]).index_fill(0, torch.arange(len(self.used), logits.shape[1]), 1.0)
        logits = logits.float() + weight * math.log(len(self.unused) / self.sample)
        return F.cross_entropy(logits, self.place[targets], label_smoothing=0.05)


def train(args: argparse.Namespace) -> None:
    """Synthesize the corpus, train, and save the backbone in `args.output`."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = WhisperTokenizer(51865)
    started = time.perf_counter()
    examples, characters = make_examples(args.utterances, tokenizer)
    hours = sum(e.mel.shape[1] for e in examples) / 360_000
    logging.info(f"{len(examples)} utterances, {hours:.1f} h, made in {time.perf_counter() - started:.0f} s")
    model = Whisper(WhisperForConditionalGeneration(nano_config())).train()
    ctc = nn.Linear(192, len(characters) + 1)
    vocabulary = SampledVocabulary(examples, model.model.config.vocab_size)
    weights = [p for p in [*model.parameters(), *ctc.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    steps, started, step = args.epochs * len(batches(examples, args.seconds, random.Random(0))), time.perf_counter(), 0
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(n / 500, 0.5 + 0.5 * math.cos(math.pi * min(n / steps, 1.0)))
    )
    for epoch in range(1, args.epochs + 1):
        losses: list[tuple[float, float]] = []
        for batch in batches(examples, args.seconds, rng):
            with torch.autocast("cpu", torch.bfloat16):
                loss, helper = batch_loss(model, ctc, vocabulary, batch, rng)
            ((1 - CTC_WEIGHT) * loss + CTC_WEIGHT * helper).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            losses.append((loss.item(), helper.item()))
            if step % 25 == 0:
                left = (time.perf_counter() - started) / step * max(steps - step, 0) / 60
                mean = np.mean(losses[-100:], axis=0)
                losses_text = f"loss {mean[0]:.3f}, CTC {mean[1]:.3f}"
                logging.info(f"epoch {epoch}, step {step}/{steps}: {losses_text}; {left:.0f} min left")
        save(model, args.output)


def save(model: Whisper, output: Path) -> None:
    """Save the weights in float16."""
    state = {name: value.half() for name, value in model.model.state_dict().items()}
    copy = WhisperForConditionalGeneration(nano_config()).half()
    copy.load_state_dict(state)
    copy.save_pretrained(output)


def get_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to save the backbone in")
    parser.add_argument("--utterances", type=int, default=2500, help="utterances per language")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of audio in a batch")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(get_parser().parse_args(cmd))


if __name__ == "__main__":
    main()

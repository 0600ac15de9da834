"""Windows of the backbone's last epochs: sentences after one another, in silence, up to the 30 s of other runtimes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet_lole.whisper.tokenizer import WhisperTokenizer

FRAMES_30S = 3000
FRAMES_PER_TIME = 2
"""Frames of 10 ms for each timestamp token of 20 ms."""
PROMPT = 4
"""Tokens before the text: sot, language, transcribe, notimestamps."""
SHARES = {"sentence": 0.3, "surrounded": 0.42, "several": 0.22, "30s": 0.06}
"""Kind of a window -> its share."""
NUM_SENTENCES = {"sentence": (1,), "surrounded": (1,), "several": (2, 3, 4), "30s": (1, 1, 2, 4, 8, 12)}
"""Kind of a window -> numbers of sentences to draw from."""


@dataclass(frozen=True)
class Example:
    """A training example: mel features (M, F) in float16, token ids (U,) from sot to eot, characters (C,) for CTC."""

    mel: Tensor
    tokens: Tensor
    characters: Tensor


def make_windows(examples: Sequence[Example], tokenizer: WhisperTokenizer, rng: random.Random) -> Iterator[Example]:
    """Put every sentence into a window, with others of its language, in random order."""
    by_language: dict[int, list[Example]] = {}
    for example in rng.sample(examples, len(examples)):
        by_language.setdefault(int(example.tokens[1]), []).append(example)
    for sentences in by_language.values():
        while sentences:
            (kind,) = rng.choices(list(SHARES), SHARES.values())
            parts = [sentences.pop() for _ in range(min(rng.choice(NUM_SENTENCES[kind]), len(sentences)))]
            yield parts[0] if kind == "sentence" else make_window(parts, kind == "30s", tokenizer, rng)


def make_window(parts: Sequence[Example], pad_to_30s: bool, tokenizer: WhisperTokenizer, rng: random.Random) -> Example:
    """Join sentences with pauses of up to a second, half of the windows with timestamps around each sentence.

    Args:
        parts: of one language; those that begin after 30 s are left out.
        pad_to_30s: pad the end with silence as transformers does, or with zeros as faster-whisper does.
        tokenizer: of the timestamps.
        rng: draws pauses and forms.
    """
    timestamps = rng.random() < 0.5
    mels, text, characters, end = [], [], [], 0
    for part in parts:
        pause = rng.randrange(100)
        start, stop = end + pause, end + pause + part.mel.shape[1]
        if stop > FRAMES_30S:
            break
        mels += [make_pause(part.mel, pause, rng), part.mel]
        times = [tokenizer.timestamp_begin + round(frame / FRAMES_PER_TIME) for frame in (start, stop)]
        words = part.tokens[PROMPT:-1].tolist()
        text += [times[0], *words, times[1]] if timestamps else words
        characters.append(part.characters)
        end = stop
    mels.append(make_pause(parts[0].mel, min(rng.randrange(60), FRAMES_30S - end), rng))
    mel = torch.cat(mels, dim=1)
    if pad_to_30s:
        value = 0.0 if rng.random() < 0.5 else float(mel.max()) - 2.0
        mel = F.pad(mel, (0, FRAMES_30S - mel.shape[1]), value=value)
    prompt = parts[0].tokens[: PROMPT - timestamps].tolist()
    return Example(mel, torch.tensor([*prompt, *text, tokenizer.eot]), torch.cat(characters))


def make_pause(mel: Tensor, frames: int, rng: random.Random) -> Tensor:
    """Return frames (M, F) of digital silence, 8 below the maximum, or of a sentence's background."""
    if rng.random() < 0.5:
        return torch.full((mel.shape[0], frames), float(mel.max()) - 2.0, dtype=mel.dtype)
    quiet = mel.float().mean(0).argsort()[:10]
    return mel[:, quiet[torch.tensor([rng.randrange(len(quiet)) for _ in range(frames)], dtype=torch.long)]]

"""Transcribe whole test sets: mixed languages, sorted by length, a batch at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from espnet_lole.atomic_io import write_whole
from espnet_lole.data.kaldi import read_table
from espnet_lole.inference.longform import join, make_batches, split
from espnet_lole.inference.search import Hypothesis
from espnet_lole.inference.transcriber import Transcriber, Transcription
from espnet_lole.whisper.features import MAX_SAMPLES, MIN_SAMPLES, SAMPLE_RATE
from espnet_lole.whisper.tokenizer import WhisperTokens


@dataclass(frozen=True)
class Item:
    """An utterance to transcribe, or a piece of it."""

    test_set: str
    utt: str
    wav: str
    samples: int
    lang: str
    start: int = 0

    def read(self) -> Tensor:
        """Its samples, shape (S,)."""
        return torch.from_numpy(soundfile.read(self.wav, self.samples, self.start, dtype="float32")[0])

    def pieces(self) -> list[Item]:
        """The utterance, or its pieces, if it is longer than Whisper takes; none, if it is shorter (under 25 ms)."""
        if MIN_SAMPLES <= self.samples <= MAX_SAMPLES:
            return [self]
        return [replace(self, start=start, samples=stop - start) for start, stop in split(self.read().numpy())]


def read_items(folder: Path) -> list[Item]:
    """The utterances of a formatted test set (``dump/raw/<set>``).

    Raises:
        FileNotFoundError: a file of the set is missing.
        ValueError: an utterance has no language or no length.
    """
    wavs, sizes, langs = (read_table(folder / name) for name in ("wav.scp", "utt2num_samples", "utt2lang"))
    if lacking := sorted(set(wavs) - (set(sizes) & set(langs))):
        raise ValueError(
            f"expected a line in utt2num_samples and utt2lang of {folder} for each of wav.scp, got none for {lacking[:3]} "
            f"({len(lacking)} in all): run stage 3 again"
        )
    return [Item(folder.name, utt, wav, int(sizes[utt]), langs[utt]) for utt, wav in wavs.items()]


def transcribe_sets(
    transcriber: Transcriber,
    folders: Sequence[Path],
    output: Path,
    scenario: str,
    batch_seconds: float,
    log_every: float = 10.0,
) -> float:
    """Transcribe test sets together and write ``<output>/<set>/{text,token,token_int,score,lang,lang_confidence,rtf}``.

    Audio over 30 s is cut at silences, and its pieces' texts are joined. Audio under 25 ms gets an empty hypothesis, which
    scoring counts as deletions, and a warning.

    Args:
        transcriber: the system.
        folders: formatted test sets.
        output: the decoding's folder.
        scenario: ``aware``: the language is given, or ``agnostic``: it is not.
        batch_seconds: audio of a batch, padding included.
        log_every: seconds between two lines on the progress.

    Returns:
        The real-time factor: seconds of work for a second of audio.
    """
    items = [item for folder in folders for item in read_items(folder)]
    pieces = {item: item.pieces() for item in items}
    for item in (item for item, of_item in pieces.items() if not of_item):
        logging.warning(f"{item.utt}: expected 25 ms at least, got {item.samples} samples: its hypothesis is empty")
    todo = [piece for of_item in pieces.values() for piece in of_item]
    found: dict[Item, Transcription] = {}
    total, started, said = sum(piece.samples for piece in todo), time.perf_counter(), time.perf_counter()
    read = 0
    for rows in make_batches([transcriber.backbone.input_samples(piece.samples) for piece in todo], batch_seconds):
        batch = [todo[row] for row in rows]
        langs = [piece.lang for piece in batch] if scenario == "aware" else None
        found |= zip(batch, transcriber([piece.read() for piece in batch], langs), strict=True)
        read += sum(piece.samples for piece in batch)
        now = time.perf_counter()
        if now - said > log_every:
            said = now
            left = (now - started) * (total - read) / read
            logging.info(f"{100 * read / total:.0f} % of {total / SAMPLE_RATE / 60:.1f} min of audio; {left:.0f} s left")
    rtf = (time.perf_counter() - started) / max(total / SAMPLE_RATE, 1e-9)
    whole = {item: _whole(item, of_item, found, scenario) for item, of_item in pieces.items()}
    for folder in folders:
        rows = sorted((i for i in items if i.test_set == folder.name), key=lambda i: i.utt)
        _write(output / folder.name, [(i.utt, whole[i]) for i in rows], transcriber.tokens, rtf)
    return rtf


def _whole(item: Item, pieces: Sequence[Item], found: Mapping[Item, Transcription], scenario: str) -> Transcription:
    """The transcription of an utterance from those of its pieces; an empty one if it has none."""
    if not pieces:
        return Transcription(Hypothesis([], 0.0), item.lang if scenario == "aware" else "-", None)
    return join([found[piece] for piece in pieces], [piece.samples for piece in pieces])


def _write(folder: Path, rows: Sequence[tuple[str, Transcription]], tokens: WhisperTokens, rtf: float) -> None:
    files = {
        "text": [f"{utt} {tokens.decode(t.hypothesis.tokens)}" for utt, t in rows],
        "token": [f"{utt} {' '.join(tokens.pieces(t.hypothesis.tokens))}" for utt, t in rows],
        "token_int": [f"{utt} {' '.join(map(str, t.hypothesis.tokens))}" for utt, t in rows],
        "score": [f"{utt} {t.hypothesis.score:.6f}" for utt, t in rows],
        "lang": [f"{utt} {t.lang}" for utt, t in rows],
        "lang_confidence": [f"{utt} {t.confidence:.6f}" for utt, t in rows if t.confidence is not None],
        "rtf": [f"{rtf:.6f}"],
    }
    for name, lines in files.items():
        write_whole(folder / name, "".join(line.rstrip() + "\n" for line in lines))

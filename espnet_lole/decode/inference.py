"""Transcribe whole test sets: mixed languages, sorted by length, a batch at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

from espnet_lole.backbone.features import MAX_SAMPLES, MIN_SAMPLES, SAMPLE_RATE
from espnet_lole.backbone.tokens import WhisperTokens
from espnet_lole.data.kaldi import read_table
from espnet_lole.decode.search import Hypothesis
from espnet_lole.decode.transcriber import Transcriber, Transcription
from espnet_lole.files import write_whole


@dataclass(frozen=True)
class Item:
    """An utterance to transcribe."""

    test_set: str
    utt: str
    wav: str
    samples: int
    lang: str


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
    tokens: WhisperTokens,
    folders: Sequence[Path],
    output: Path,
    scenario: str,
    batch_seconds: float,
    log_every: float = 10.0,
) -> float:
    """Transcribe test sets together and write ``<output>/<set>/{text,token,token_int,score,lang,lang_confidence,rtf}``.

    Audio that Whisper cannot take (under 25 ms, over 30 s) gets an empty hypothesis, which scoring counts as deletions, and a
    warning.

    Args:
        transcriber: the system.
        tokens: its tokens.
        folders: formatted test sets.
        output: the decoding's folder.
        scenario: ``aware``: the language is given, or ``agnostic``: it is not.
        batch_seconds: audio of a batch, padding included.
        log_every: seconds between two lines on the progress.

    Returns:
        The real-time factor: seconds of work for a second of audio.
    """
    items = [item for folder in folders for item in read_items(folder)]
    fit = [item for item in items if MIN_SAMPLES <= item.samples <= MAX_SAMPLES]
    for item in set(items) - set(fit):
        logging.warning(f"{item.utt}: expected 25 ms to 30 s, got {item.samples / SAMPLE_RATE:.2f} s: its hypothesis is empty")
    found = {item: Transcription(Hypothesis([], 0.0), item.lang if scenario == "aware" else "-", None) for item in items}
    total, started, said = sum(item.samples for item in fit), time.perf_counter(), time.perf_counter()
    read = 0
    for batch in make_batches(fit, batch_seconds):
        speech = [torch.from_numpy(soundfile.read(item.wav, dtype="float32")[0]) for item in batch]
        langs = [item.lang for item in batch] if scenario == "aware" else None
        found |= zip(batch, transcriber(speech, langs), strict=True)
        read += sum(item.samples for item in batch)
        now = time.perf_counter()
        if now - said > log_every:
            said = now
            left = (now - started) * (total - read) / read
            logging.info(f"{100 * read / total:.0f} % of {total / SAMPLE_RATE / 60:.1f} min of audio; {left:.0f} s left")
    rtf = (time.perf_counter() - started) / max(total / SAMPLE_RATE, 1e-9)
    for folder in folders:
        rows = sorted((i for i in items if i.test_set == folder.name), key=lambda i: i.utt)
        _write(output / folder.name, [(i.utt, found[i]) for i in rows], tokens, rtf)
    return rtf


def make_batches(items: Sequence[Item], seconds: float) -> list[list[Item]]:
    """Batches of similar length, the longest first, of at most ``seconds`` of audio with padding."""
    batches: list[list[Item]] = []
    for item in sorted(items, key=lambda i: (-i.samples, i.utt)):
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].samples > seconds * SAMPLE_RATE:
            batches.append([])
        batches[-1].append(item)
    return batches


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

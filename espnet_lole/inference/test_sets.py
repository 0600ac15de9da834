"""Transcribe formatted test sets and write the hypotheses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.data.kaldi import read_table
from espnet_lole.inference.batching import Audio, transcribe
from espnet_lole.inference.longform import join
from espnet_lole.inference.results import Hypothesis
from espnet_lole.inference.transcriber import Transcriber
from espnet_lole.whisper.features import SAMPLE_RATE
from espnet_lole.whisper.tokenizer import WhisperTokenizer


def read_test_set(folder: Path) -> list[Audio]:
    """Read the utterances of a formatted test set (``dump/raw/<set>``), of any length; their samples are loaded later.

    Raises:
        FileNotFoundError: a file of the set is missing.
        ValueError: an utterance has no language or no length.
    """
    wavs, sizes, langs = (read_table(folder / name) for name in ("wav.scp", "utt2num_samples", "utt2lang"))
    if missing := sorted(set(wavs) - (set(sizes) & set(langs))):
        raise ValueError(
            f"utt2num_samples or utt2lang of {folder} lacks {len(missing)} utterances of wav.scp, {missing[:3]} among "
            "them: run stage 3 again"
        )
    return [Audio(utt, langs[utt], 0, int(sizes[utt]), partial(_read, wav)) for utt, wav in wavs.items()]


def transcribe_sets(
    transcriber: Transcriber, folders: Sequence[Path], output: Path, scenario: str, batch_seconds: float
) -> float:
    """Transcribe test sets together and write ``<output>/<set>/{text,token,token_int,score,lang,lang_confidence,rtf}``.

    Audio over 30 s is split at silences, and its pieces' texts are joined. Audio under 25 ms gets a warning and an
    empty hypothesis, which scoring counts as deletions.

    Args:
        transcriber: the system.
        folders: formatted test sets.
        output: folder of the decoding.
        scenario: ``aware``: the language is given, or ``agnostic``: it is not.
        batch_seconds: audio of a batch, padding included.

    Returns:
        The real-time factor: seconds of work per second of audio.
    """
    utterances = [(folder.name, utterance) for folder in folders for utterance in read_test_set(folder)]
    if scenario == "agnostic":
        utterances = [(name, replace(utterance, language=None)) for name, utterance in utterances]
    pieces = [utterance.pieces() for _, utterance in utterances]
    seconds = sum(piece.num_samples for of_utterance in pieces for piece in of_utterance) / SAMPLE_RATE
    started = time.perf_counter()
    decoded = transcribe(transcriber, pieces, batch_seconds, _log_progress(seconds))
    rtf = (time.perf_counter() - started) / max(seconds, 1e-9)
    rows: dict[str, list[tuple[str, Hypothesis]]] = {folder.name: [] for folder in folders}
    for (name, utterance), hypotheses, of_utterance in zip(utterances, decoded, pieces, strict=True):
        rows[name].append((utterance.id, _join(utterance, hypotheses, of_utterance)))
    for name, of_set in rows.items():
        _write(output / name, sorted(of_set, key=lambda row: row[0]), transcriber.tokenizer, rtf)
    return rtf


def _join(utterance: Audio, hypotheses: Sequence[Hypothesis], pieces: Sequence[Audio]) -> Hypothesis:
    """Join the hypotheses of an utterance's pieces; warn if it has none."""
    if pieces:
        return join(hypotheses, [piece.num_samples for piece in pieces])
    logging.warning(f"{utterance.id} has {utterance.num_samples} samples, less than 25 ms: its hypothesis is empty")
    return Hypothesis([], 0.0, language=utterance.language or "-")


def _log_progress(total: float, every: float = 10.0) -> Callable[[float], None]:
    """Make a function that adds up seconds of audio, of a total, and logs the progress every so many seconds."""
    done, started = 0.0, time.perf_counter()
    logged = started

    def progress(seconds: float) -> None:
        nonlocal done, logged
        done, now = done + seconds, time.perf_counter()
        if now - logged > every:
            logged = now
            left = (now - started) * (total - done) / done
            logging.info(f"{100 * done / total:.0f} % of {total / 60:.1f} min of audio; {left:.0f} s left")

    return progress


def _read(wav: str, start: int, stop: int) -> Tensor:
    """Read samples of an audio file, shape (S,)."""
    return torch.from_numpy(soundfile.read(wav, stop - start, start, dtype="float32")[0])


def _write(folder: Path, rows: Sequence[tuple[str, Hypothesis]], tokenizer: WhisperTokenizer, rtf: float) -> None:
    """Write the files of a test set."""
    files = {
        "text": [f"{utt} {tokenizer.decode(h.tokens)}" for utt, h in rows],
        "token": [f"{utt} {' '.join(tokenizer.pieces(h.tokens))}" for utt, h in rows],
        "token_int": [f"{utt} {' '.join(map(str, h.tokens))}" for utt, h in rows],
        "score": [f"{utt} {h.score:.6f}" for utt, h in rows],
        "lang": [f"{utt} {h.language}" for utt, h in rows],
        "lang_confidence": [f"{utt} {h.confidence:.6f}" for utt, h in rows if h.confidence is not None],
        "rtf": [f"{rtf:.6f}"],
    }
    for name, lines in files.items():
        write_text_atomic(folder / name, "".join(line.rstrip() + "\n" for line in lines))

"""Read formatted test sets and transcribe them, all or one job's share."""

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

from espnet_lole.data.kaldi import read_table
from espnet_lole.inference.batching import Audio, make_batches, transcribe
from espnet_lole.inference.pieces import Decoded, Piece, share_batches
from espnet_lole.inference.results import Hypothesis
from espnet_lole.inference.transcriber import Transcriber
from espnet_lole.whisper.features import MIN_SAMPLES, SAMPLE_RATE


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
    transcriber: Transcriber,
    folders: Sequence[Path],
    scenario: str,
    batch_seconds: float,
    job: int = 1,
    jobs: int = 1,
) -> Decoded:
    """Transcribe test sets together, or the share of them that is one job's.

    Audio over 30 s is split at silences into pieces. Audio under 25 ms gets a warning and an empty hypothesis, which
    scoring counts as deletions. Each piece is in the same batch whatever the number of jobs.

    Args:
        transcriber: the system.
        folders: formatted test sets.
        scenario: ``aware``: the language is given, or ``agnostic``: it is not.
        batch_seconds: audio of a batch, padding included.
        job: number of this job, from 1.
        jobs: number of jobs.
    """
    utterances = [(folder.name, utterance) for folder in folders for utterance in read_test_set(folder)]
    if scenario == "agnostic":
        utterances = [(name, replace(utterance, language=None)) for name, utterance in utterances]
    short = [(name, utterance) for name, utterance in utterances if utterance.num_samples < MIN_SAMPLES]
    audio = [(name, piece) for name, utterance in utterances for piece in utterance.pieces()]
    lengths = [transcriber.whisper.input_samples(piece.num_samples) for _, piece in audio]
    share = [audio[i] for i in share_batches(make_batches(lengths, batch_seconds), lengths, jobs)[job - 1]]
    seconds = sum(piece.num_samples for _, piece in share) / SAMPLE_RATE
    started = time.perf_counter()
    hypotheses = transcribe(transcriber, [[piece] for _, piece in share], batch_seconds, _log_progress(seconds))
    took = time.perf_counter() - started
    pieces = [_piece(name, piece, decoded) for (name, piece), (decoded,) in zip(share, hypotheses, strict=True)]
    if job == 1:
        pieces += [_piece(name, utterance, _empty(utterance)) for name, utterance in short]
    total, vocab_size = len(audio) + len(short), transcriber.tokenizer.vocab_size
    return Decoded([folder.name for folder in folders], pieces, total, took, vocab_size)


def _piece(test_set: str, audio: Audio, hypothesis: Hypothesis) -> Piece:
    return Piece(test_set, audio.id, audio.start, audio.stop, hypothesis)


def _empty(utterance: Audio) -> Hypothesis:
    """Return the hypothesis of audio under 25 ms, with a warning."""
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

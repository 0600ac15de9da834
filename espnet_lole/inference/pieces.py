"""What a job has decoded of the test sets, piece by piece, and the tables that the pieces of all jobs become."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.inference.longform import join
from espnet_lole.inference.results import Hypothesis
from espnet_lole.whisper.features import SAMPLE_RATE
from espnet_lole.whisper.tokenizer import WhisperTokenizer

PIECES = "pieces.json"
"""File in the folder of a job."""


@dataclass(frozen=True)
class Piece:
    """A decoded piece of an utterance, or the whole utterance.

    Attributes:
        test_set: name of the set.
        id: name of the utterance.
        start: first sample, at 16 kHz.
        stop: end, in samples.
        hypothesis: its transcription.
    """

    test_set: str
    id: str
    start: int
    stop: int
    hypothesis: Hypothesis


@dataclass(frozen=True)
class Decoded:
    """What one job has decoded.

    Attributes:
        test_sets: names of the sets.
        pieces: in any order.
        total: number of pieces of all jobs.
        seconds: time of the decoding.
        vocab_size: size of the Whisper's vocabulary.
    """

    test_sets: list[str]
    pieces: list[Piece]
    total: int
    seconds: float
    vocab_size: int


def output_folder(output_dir: Path, scenario: str) -> Path:
    """Return the folder of a decoding in a scenario."""
    return output_dir.with_name(f"{output_dir.name}_{scenario}")


def job_folder(output_dir: Path, scenario: str, job: int) -> Path:
    """Return the folder that one of several jobs writes to."""
    return output_dir.with_name(f"{output_dir.name}_logdir") / f"output.{job}" / scenario


def share_batches(batches: Sequence[Sequence[int]], num_samples: Sequence[int], jobs: int) -> list[list[int]]:
    """Share whole batches between jobs, so that their padded audio is about equal.

    Batches stay as they are, because the last digits of a hypothesis' score depend on what it is batched with.

    Args:
        batches: indices of the pieces of each.
        num_samples: length of each piece.
        jobs: number of jobs.

    Returns:
        Sorted indices of the pieces of each job.
    """
    shares, loads = [[] for _ in range(jobs)], [0] * jobs
    padded = [len(batch) * max(num_samples[i] for i in batch) for batch in batches]
    for number in sorted(range(len(batches)), key=lambda number: -padded[number]):
        job = loads.index(min(loads))
        loads[job] += padded[number]
        shares[job].extend(batches[number])
    return [sorted(share) for share in shares]


def write_pieces(folder: Path, decoded: Decoded) -> None:
    """Write ``<folder>/pieces.json``.

    Raises:
        OSError: it cannot be written.
    """
    write_text_atomic(folder / PIECES, json.dumps(asdict(decoded), ensure_ascii=False) + "\n")


def read_pieces(folder: Path) -> Decoded:
    """Read the file of ``write_pieces``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken.
    """
    try:
        values = json.loads((folder / PIECES).read_text(encoding="utf-8"))
        pieces = [Piece(**row | {"hypothesis": Hypothesis(**row["hypothesis"])}) for row in values["pieces"]]
        return Decoded(**values | {"pieces": pieces})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / PIECES} is broken ({error}): decode again (stage 12)") from error


def write_sets(output: Path, jobs: Sequence[Decoded]) -> float:
    """Write ``<output>/<set>/{text,token,token_int,score,lang,lang_confidence,rtf}`` from the pieces of all jobs.

    Args:
        output: folder of the decoding.
        jobs: what each job has decoded.

    Returns:
        The real-time factor: seconds of work, added up over the jobs, per second of audio.

    Raises:
        ValueError: a piece is missing; nothing was written.
        OSError: a file cannot be written.
    """
    pieces = [piece for job in jobs for piece in job.pieces]
    if any(job.total != len(pieces) for job in jobs):
        raise ValueError(f"{output}: {len(pieces)} pieces were decoded of {jobs[0].total}: decode again (stage 12)")
    sets: dict[str, dict[str, list[Piece]]] = {name: defaultdict(list) for name in jobs[0].test_sets}
    for piece in sorted(pieces, key=lambda piece: (piece.id, piece.start)):
        sets[piece.test_set][piece.id].append(piece)
    audio = sum(piece.stop - piece.start for piece in pieces) / SAMPLE_RATE
    rtf = sum(job.seconds for job in jobs) / max(audio, 1e-9)
    tokenizer = WhisperTokenizer(jobs[0].vocab_size)
    for name, utterances in sets.items():
        rows = [(utt, _join(of_utterance)) for utt, of_utterance in utterances.items()]
        _write_tables(output / name, rows, tokenizer, rtf)
    return rtf


def _join(pieces: Sequence[Piece]) -> Hypothesis:
    """Join the hypotheses of an utterance's pieces."""
    return join([piece.hypothesis for piece in pieces], [piece.stop - piece.start for piece in pieces])


def _write_tables(
    folder: Path, rows: Sequence[tuple[str, Hypothesis]], tokenizer: WhisperTokenizer, rtf: float
) -> None:
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

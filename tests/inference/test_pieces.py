import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_lole.inference.batching import make_batches
from espnet_lole.inference.longform import join
from espnet_lole.inference.pieces import PIECES, Decoded, Piece, read_pieces, share_batches, write_pieces, write_sets
from espnet_lole.inference.results import Hypothesis
from espnet_lole.whisper.tokenizer import WhisperTokenizer

RATE, VOCAB = 16_000, 51865
LENGTHS = st.lists(st.integers(400, 30 * RATE) | st.sampled_from([RATE, 5 * RATE]), max_size=60)


@given(LENGTHS, st.integers(1, 7), st.floats(1, 200))
def test_jobs_get_the_batches_of_one_job(lengths, jobs, batch_seconds):
    """Batching the pieces of a job again gives the batches that it got."""
    batches = make_batches(lengths, batch_seconds)
    shares = share_batches(batches, lengths, jobs)
    again = [
        [share[i] for i in batch]
        for share in shares
        for batch in make_batches([lengths[i] for i in share], batch_seconds)
    ]
    assert len(shares) == jobs and sorted(again) == sorted(batches)


@given(LENGTHS, st.integers(1, 7))
def test_no_job_gets_a_batch_more_than_another(lengths, jobs):
    """The bound of assigning each batch to the job with the least: the largest batch."""
    batches = make_batches(lengths, 60.0)
    padded = {i: lengths[batch[0]] for batch in batches for i in batch}
    loads = [sum(padded[i] for i in share) for share in share_batches(batches, lengths, jobs)]
    assert max(loads) - min(loads) <= max((lengths[b[0]] * len(b) for b in batches), default=0)


def decoded(pieces: list[Piece], total: int, seconds: float) -> Decoded:
    return Decoded(["a", "b"], pieces, total, seconds, VOCAB)


def hypothesis(text: str, score: float, **posteriors: float) -> Hypothesis:
    tokens = WhisperTokenizer(VOCAB).encode(text, "de")
    return Hypothesis(tokens, score, language="de", posteriors=posteriors or None, decode_seconds=0.1)


def test_a_recording_whose_pieces_went_to_two_jobs_is_joined(tmp_path):
    first, second = hypothesis("eins", -1 / 3, de=0.7, tr=0.3), hypothesis("zwei", -2 / 3, de=0.1, tr=0.9)
    short = Piece("a", "short", 0, RATE, hypothesis("kurz", -0.5, de=0.5, tr=0.5))
    jobs = [
        decoded([Piece("a", "long", 20 * RATE, 40 * RATE, second)], 3, 4.0),
        decoded([short, Piece("a", "long", 0, 20 * RATE, first)], 3, 2.0),
    ]
    for number, job in enumerate(jobs):
        write_pieces(tmp_path / f"{number}", job)
    read = [read_pieces(tmp_path / f"{number}") for number in range(2)]
    assert read == jobs
    rtf = write_sets(tmp_path / "out", read)
    assert rtf == pytest.approx(6 / 41) and (tmp_path / "out" / "a" / "rtf").read_text() == f"{rtf:.6f}\n"
    assert (tmp_path / "out" / "a" / "text").read_text() == "long eins zwei\nshort kurz\n"
    expected = join([first, second], [20 * RATE, 20 * RATE])
    assert (tmp_path / "out" / "a" / "score").read_text().splitlines()[0] == f"long {expected.score:.6f}"
    assert (tmp_path / "out" / "b" / "text").read_text() == ""  # a set without utterances


def test_a_missing_piece_is_noticed_before_anything_is_written(tmp_path):
    job = decoded([Piece("a", "utt", 0, RATE, hypothesis("ja", -1.0))], 2, 1.0)
    with pytest.raises(ValueError, match="1 pieces were decoded of 2: decode again"):
        write_sets(tmp_path / "out", [job])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"pieces": [{"id": "utt"}]})])
def test_a_broken_file_is_named(tmp_path: Path, content):
    (tmp_path / PIECES).write_text(content)
    with pytest.raises(ValueError, match="pieces.json is broken"):
        read_pieces(tmp_path)

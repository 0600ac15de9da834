import logging

import numpy as np
import pytest
import soundfile
from conftest import tiny_whisper

from espnet_lole.inference.search import Hypothesis
from espnet_lole.inference.test_sets import transcribe_sets
from espnet_lole.inference.transcriber import Transcription
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

RATE = 16_000


class Listener:
    """A system that says the loudest level of each utterance, in hundredths, as a word."""

    tokens = WhisperTokens(51865)

    def __init__(self, window="short"):
        self.backbone, self.batches = Backbone(tiny_whisper(), window), []

    def __call__(self, speech, langs):
        self.batches.append(len(speech))
        said = [self.tokens.encode(f"level{round(100 * float(s.max()))}", "de") for s in speech]
        langs = langs or ["en"] * len(said)
        return [Transcription(Hypothesis(ids, -1.0), lang, None) for ids, lang in zip(said, langs, strict=True)]


@pytest.fixture
def test_set(tmp_path):
    folder = tmp_path / "test_de"
    folder.mkdir()
    long = np.concatenate([np.full(20 * RATE, 0.25), np.zeros(2 * RATE), np.full(21 * RATE, 0.5)])
    tables = {"wav.scp": "", "utt2num_samples": "", "utt2lang": ""}
    for utt, samples in {"long": long, "short": np.full(RATE, 0.75), "tiny": np.zeros(200)}.items():
        soundfile.write(folder / f"{utt}.flac", samples, RATE)
        tables["wav.scp"] += f"{utt} {folder / utt}.flac\n"
        tables["utt2num_samples"] += f"{utt} {len(samples)}\n"
        tables["utt2lang"] += f"{utt} de\n"
    for name, text in tables.items():
        (folder / name).write_text(text)
    return folder


def test_long_audio_is_cut_and_joined_and_short_audio_is_told(test_set, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        transcribe_sets(Listener(), [test_set], tmp_path / "out", "aware", 60.0)
    out = tmp_path / "out" / "test_de"
    assert (out / "text").read_text() == "long level25 level50\nshort level75\ntiny\n"
    assert [len(line.split()) for line in (out / "token_int").read_text().splitlines()] == [
        len(line.split()) for line in (out / "token").read_text().splitlines()
    ]
    assert "tiny: expected 25 ms at least" in caplog.text


@pytest.mark.parametrize("window, batches", [("short", [2, 1]), ("30s", [1, 1, 1])])
def test_silence_that_is_worked_through_counts_in_a_batch(test_set, tmp_path, window, batches):
    system = Listener(window)
    transcribe_sets(system, [test_set], tmp_path / "out", "aware", 50.0)
    assert system.batches == batches


def test_a_set_without_lengths_is_refused(test_set, tmp_path):
    (test_set / "utt2num_samples").write_text("long 1\n")
    with pytest.raises(ValueError, match=r"got none for \['short', 'tiny'\] \(2 in all\): run stage 3 again"):
        transcribe_sets(Listener(), [test_set], tmp_path / "out", "aware", 60.0)

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import tiny_whisper

from espnet_lole.inference.pieces import write_sets
from espnet_lole.inference.results import Hypothesis
from espnet_lole.inference.test_sets import read_test_set, transcribe_sets
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

RATE = 16_000


class LevelMeter:
    """A system whose hypothesis is the loudest level of an utterance, in hundredths, as a word."""

    tokenizer = WhisperTokenizer(51865)
    whisper = Whisper(tiny_whisper())

    def __call__(self, speech, lengths, languages):
        tokens = [self.tokenizer.encode(f"level{round(100 * float(s.max()))}", "de") for s in speech]
        posteriors = None if languages else {"en": 0.75, "de": 0.25}
        languages = languages or ["en"] * len(tokens)
        return [Hypothesis(t, -1.0, False, lang, posteriors) for t, lang in zip(tokens, languages, strict=True)]


@pytest.fixture
def test_set(tmp_path) -> Path:
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


def test_long_audio_is_split_and_joined_and_short_audio_is_warned_of(test_set, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        write_sets(tmp_path / "out", [transcribe_sets(LevelMeter(), [test_set], "aware", 60.0)])
    out = tmp_path / "out" / "test_de"
    assert (out / "text").read_text() == "long level25 level50\nshort level75\ntiny\n"
    assert (out / "lang").read_text() == "long de\nshort de\ntiny de\n"
    assert [len(line.split()) for line in (out / "token_int").read_text().splitlines()] == [
        len(line.split()) for line in (out / "token").read_text().splitlines()
    ]
    assert "tiny has 200 samples, less than 25 ms: its hypothesis is empty" in caplog.text


def test_the_language_is_not_given_in_the_agnostic_scenario(test_set, tmp_path):
    write_sets(tmp_path / "out", [transcribe_sets(LevelMeter(), [test_set], "agnostic", 60.0)])
    out = tmp_path / "out" / "test_de"
    assert (out / "lang").read_text() == "long en\nshort en\ntiny -\n"
    assert (out / "lang_confidence").read_text() == "long 0.750000\nshort 0.750000\n"


def test_a_file_is_read_at_its_samples(test_set):
    long = read_test_set(test_set)[0]
    assert long.read(19 * RATE, 23 * RATE).tolist() == [0.25] * RATE + [0.0] * 2 * RATE + [0.5] * RATE


def test_a_set_without_lengths_is_refused(test_set):
    (test_set / "utt2num_samples").write_text("long 1\n")
    with pytest.raises(
        ValueError, match=r"lacks 2 utterances of wav.scp, \['short', 'tiny'\] among them: run stage 3 again"
    ):
        transcribe_sets(LevelMeter(), [test_set], "aware", 60.0)

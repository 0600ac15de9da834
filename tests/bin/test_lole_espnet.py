"""Bringing ESPnet's own hypotheses to the other systems'."""

import logging

import pytest
import yaml

from espnet_lole.bin.lole_espnet import DecodingTimer, join_tables, main, seconds_of, split_tags, write_sets


@pytest.fixture
def sets(tmp_path):
    for lang, utts in (("de", ("b", "a")), ("tr", ("c",))):
        folder = tmp_path / f"test_{lang}"
        folder.mkdir()
        (folder / "wav.scp").write_text("".join(f"{utt} {utt}.flac\n" for utt in utts))
        (folder / "utt2lang").write_text("".join(f"{utt} {lang}\n" for utt in utts))
        (folder / "utt2num_samples").write_text("".join(f"{utt} 8000\n" for utt in utts))
    return [tmp_path / "test_de", tmp_path / "test_tr"]


@pytest.mark.parametrize("predicted", [{"a": "de", "b": "?", "c": "tr"}, None])
def test_sets_are_joined_and_split_again(sets, tmp_path, predicted):
    assert join_tables(sets, "wav.scp") == {"a": "a.flac", "b": "b.flac", "c": "c.flac"}
    assert seconds_of(sets) == 1.5
    write_sets(sets, tmp_path / "decode", {"a": "ein Hund", "b": "", "c": "iki"}, predicted, 0.25)
    assert (tmp_path / "decode" / "test_de" / "text").read_text() == "a ein Hund\nb\n"
    assert (tmp_path / "decode" / "test_tr" / "text").read_text() == "c iki\n"
    assert float((tmp_path / "decode" / "test_tr" / "rtf").read_text()) == 0.25
    assert (tmp_path / "decode" / "test_de" / "lang").exists() == (predicted is not None)


def test_an_utterance_of_two_sets_is_refused(sets):
    (sets[1] / "wav.scp").write_text("a other.flac\n")
    with pytest.raises(ValueError, match="expected each utterance in one test set, got \\['a'\\] again in"):
        join_tables(sets, "wav.scp")


def test_the_tag_before_a_text_is_its_language():
    texts, predicted = split_tags({"a": "[de] ein Hund", "b": " [tr]iki", "c": "no tag", "d": "", "e": "[de] x [en] y"})
    assert texts == {"a": "ein Hund", "b": "iki", "c": "no tag", "d": "", "e": "x y"}
    assert predicted == {"a": "de", "b": "tr", "c": "?", "d": "?", "e": "de"}


def test_decoding_time_is_from_the_length_of_an_utterance_to_its_best_hypothesis():
    """The lines that calculate_rtf.py of ESPnet's recipes reads."""
    timer = DecodingTimer()
    for second, text in (
        (1, "model loaded"),
        (5, "speech length: 8000"),
        (6, "beam"),
        (7.5, "best hypo: x\n"),
        (9, "end"),
    ):
        record = logging.LogRecord("x", logging.INFO, "x", 1, text, None, None)
        record.created = second
        timer.handle(record)
    assert timer.seconds == 2.5


def test_the_language_cannot_be_given_to_a_conformer(sets, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"encoder": "conformer"}))
    options = ["--asr_model_file", tmp_path / "x.pth", "--config", "x.yaml", "--output_dir", tmp_path / "decode"]
    with pytest.raises(SystemExit, match="error: only a Whisper can be given the language"):
        main([*map(str, options), "--test_dirs", *map(str, sets), "--scenarios", "aware"])

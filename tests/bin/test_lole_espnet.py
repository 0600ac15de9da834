"""Bringing ESPnet's own hypotheses to the other systems'."""

import pytest

from espnet_lole.bin.lole_espnet import join_sets, seconds_of, split_sets


@pytest.fixture
def sets(tmp_path):
    for lang, utts in (("de", ("b", "a")), ("tr", ("c",))):
        folder = tmp_path / f"test_{lang}"
        folder.mkdir()
        (folder / "wav.scp").write_text("".join(f"{utt} {utt}.flac\n" for utt in utts))
        (folder / "utt2num_samples").write_text("".join(f"{utt} 8000\n" for utt in utts))
    return [tmp_path / "test_de", tmp_path / "test_tr"]


def test_sets_are_joined_and_split_again(sets, tmp_path):
    join_sets(sets, tmp_path / "all" / "wav.scp")
    assert (tmp_path / "all" / "wav.scp").read_text() == "a a.flac\nb b.flac\nc c.flac\n"
    assert seconds_of(sets) == 1.5
    (tmp_path / "text").write_text("a ein Hund\nb  \nc iki\n")
    split_sets(tmp_path / "text", sets, tmp_path / "decode", 0.25)
    assert (tmp_path / "decode" / "test_de" / "text").read_text() == "b\na ein Hund\n"
    assert (tmp_path / "decode" / "test_tr" / "text").read_text() == "c iki\n"
    assert float((tmp_path / "decode" / "test_tr" / "rtf").read_text()) == 0.25


def test_an_utterance_of_two_sets_is_refused(sets, tmp_path):
    (sets[1] / "wav.scp").write_text("a other.flac\n")
    with pytest.raises(ValueError, match="expected each utterance in one test set, got \\['a'\\] again in"):
        join_sets(sets, tmp_path / "wav.scp")

"""The synthetic corpus is the same in every run, and its sets share neither voices nor sentences."""

from itertools import islice

import numpy as np
import pytest
import soundfile

from espnet_lole.data.kaldi import read_table
from lole_mini.prepare import main
from lole_mini.sentences import LANGUAGES, sentences, spell_zh
from lole_mini.speech import VARIANTS


def test_numbers_are_spelled_in_mandarin():
    known = {0: "零", 10: "十", 15: "十五", 20: "二十", 101: "一百零一"}
    known |= {110: "一百一十", 1001: "一千零一", 2034: "二千零三十四"}
    assert {n: spell_zh(n) for n in known} == known
    with pytest.raises(ValueError, match="0 to 9999"):
        spell_zh(10_000)


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("domain", ["atlas", "market"])
def test_sentences_are_different_speakable_and_repeatable(domain, lang):
    texts = list(islice(sentences(domain, lang, 0), 200))
    assert len(set(texts)) == 200
    assert texts == list(islice(sentences(domain, lang, 0), 200))
    assert not any(c.isdigit() or c in "()/" for text in texts for c in text)


def test_no_voice_is_in_two_sets():
    voices = [voice for variants in VARIANTS.values() for voice in variants]
    assert len(voices) == len(set(voices))


def test_corpus_is_repeatable_and_its_sets_share_nothing(tmp_path):
    for run in ("a", "b"):
        main(["--output", str(tmp_path / run), "--langs", "tr", "--scale", "0.1", "--nj", "1"])
    texts, speakers = [], []
    for split in ("train", "dev", "test"):
        first, second = (tmp_path / run / f"{split}_tr" for run in ("a", "b"))
        assert read_table(first / "text") == read_table(second / "text")
        for utt, wav in read_table(first / "wav.scp").items():
            speech, rate = soundfile.read(wav)
            repeated, _ = soundfile.read(read_table(second / "wav.scp")[utt])
            assert rate == 16_000
            assert np.array_equal(speech, repeated)
        assert set(read_table(first / "utt2lang").values()) == {"tr"}
        texts += read_table(first / "text").values()
        speakers += read_table(first / "spk2utt")
    assert len(texts) == len(set(texts))
    assert len(speakers) == len(set(speakers))

import pytest
from whisper.tokenizer import get_tokenizer

from espnet_lole.whisper.tokenizer import WhisperTokens


def test_prompt_is_whispers(tokens):
    theirs = get_tokenizer(True, language="de", task="transcribe")
    assert tuple(tokens.prompt("de")) == theirs.sot_sequence_including_notimestamps


@pytest.mark.parametrize(("lang", "text"), [("de", "siebzehn Äpfel"), ("zh", "二十四摄氏度"), ("ru", "три рубля")])
def test_texts_come_back(tokens, lang, text):
    ids = tokens.encode(text, lang)
    assert tokens.decode([*tokens.prompt(lang), *ids, tokens.end]) == text
    assert len(tokens.pieces(ids)) == len(ids)


def test_only_spaced_languages_start_with_a_space(tokens):
    assert tokens.pieces(tokens.encode("ja", "de"))[0].startswith("▁")
    assert not tokens.pieces(tokens.encode("二", "zh"))[0].startswith("▁")


def test_vocabulary_tells_the_languages():
    assert "yue" in WhisperTokens(51866).languages
    assert "yue" not in WhisperTokens(51865).languages
    with pytest.raises(ValueError, match="English-only"):
        WhisperTokens(51864)
    with pytest.raises(ValueError, match="expected a language code of Whisper, got 'xx'"):
        WhisperTokens(51865).prompt("xx")

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from whisper.tokenizer import get_tokenizer

from espnet_lole.whisper.tokenizer import WhisperTokenizer


def test_prompt_is_openais(tokenizer):
    oracle = get_tokenizer(True, language="de", task="transcribe")
    assert tuple(tokenizer.prompt("de")) == oracle.sot_sequence_including_notimestamps
    assert tuple(tokenizer.prompt("de", timestamps=True)) == oracle.sot_sequence


@pytest.mark.parametrize("size", [51865, 51866])
def test_special_tokens_are_openais(size):
    tokenizer, oracle = WhisperTokenizer(size), get_tokenizer(True, num_languages=size - 51766)
    for name in ("sot", "eot", "transcribe", "no_timestamps", "timestamp_begin"):
        assert getattr(tokenizer, name) == getattr(oracle, name)
    assert {token: tokenizer.eot + i for i, token in enumerate(tokenizer.special)} == oracle.special_tokens
    special = [oracle.sot, oracle.sot_prev, oracle.sot_lm, oracle.no_speech, oracle.transcribe, oracle.translate]
    assert tokenizer.suppressed == sorted({*oracle.non_speech_tokens, *special})
    codes = dict(zip(oracle.all_language_codes, oracle.all_language_tokens, strict=True))
    assert tokenizer.languages == codes and len(codes) == size - 51766


@pytest.mark.parametrize("size", [51865, 51866])
def test_every_token_is_openais(size):
    """The bytes of each token, and random tokens to text."""
    tokenizer, oracle = WhisperTokenizer(size), get_tokenizer(True, num_languages=size - 51766)
    ids = list(range(size))
    raw = [oracle.encoding.decode_single_token_bytes(i) for i in ids]
    assert tokenizer.pieces(ids) == [
        piece.decode("utf-8", "backslashreplace").replace(" ", "▁").replace("\n", "\\n") for piece in raw
    ]
    for number in range(100):
        some = random.Random(number).choices(ids, k=30)
        text = oracle.encoding.decode([i for i in some if i < oracle.eot])
        assert tokenizer.decode(some) == " ".join(line.strip() for line in text.splitlines() if line.strip())


@given(st.text() | st.lists(st.sampled_from(["<|de|>", "<|0.00|>", " '", "'ll", "१२", "Straße", "好"])).map("".join))
def test_any_text_is_encoded_as_openai_does(text):
    oracle = get_tokenizer(True).encoding
    for lang, start in (("de", " "), ("zh", "")):
        assert WhisperTokenizer(51865).encode(text, lang) == oracle.encode_ordinary(start + text.strip())


@pytest.mark.parametrize(("lang", "text"), [("de", "siebzehn Äpfel"), ("zh", "二十四摄氏度"), ("ru", "три рубля")])
def test_a_text_survives_encoding_and_decoding(tokenizer, lang, text):
    ids = tokenizer.encode(text, lang)
    assert tokenizer.decode([*tokenizer.prompt(lang), *ids, tokenizer.eot]) == text
    assert len(tokenizer.pieces(ids)) == len(ids)


def test_only_spaced_languages_start_with_a_space(tokenizer):
    assert tokenizer.pieces(tokenizer.encode("ja", "de"))[0].startswith("▁")
    assert not tokenizer.pieces(tokenizer.encode("二", "zh"))[0].startswith("▁")


@pytest.mark.parametrize("text", ["eins\nzwei", "eins \r\n zwei\n", "\neins\n\n zwei", "eins\u2028zwei"])
def test_a_decoded_text_is_one_line(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, "de")) == "eins zwei"


def test_the_vocabulary_determines_the_languages():
    assert "yue" in WhisperTokenizer(51866).languages
    assert "yue" not in WhisperTokenizer(51865).languages
    with pytest.raises(ValueError, match="English-only"):
        WhisperTokenizer(51864)
    with pytest.raises(ValueError, match="expected a language code of Whisper, got 'xx'"):
        WhisperTokenizer(51865).prompt("xx")
    with pytest.raises(ValueError, match="has 99 languages, and 'yue' .*openai/whisper-large-v3"):
        WhisperTokenizer(51865).prompt("yue")


def test_a_text_is_one_line():
    tokenizer = WhisperTokenizer(51865)
    for text in ("two\nlines", "two \r\n\r\n lines", "two\u2028lines", "two\x0b\x0clines\n"):
        assert tokenizer.decode(tokenizer.encode(text, "en")) == "two lines"

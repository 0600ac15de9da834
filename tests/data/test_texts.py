"""Texts that do not look like their language are counted, tags leave, and Common Voice's table gives the originals."""

from pathlib import Path

import pytest
from whisper.tokenizer import LANGUAGES

from espnet_lole.data.kaldi import KaldiDir
from espnet_lole.data.texts import find_suspects, fits_script, in_capitals, remove_tags, restore_texts, scripts

FITTING = {
    "de": ["Ein Haus.", "1984!", "Das heißt спасибо"],
    "ru": ["Дом", "Компания Apple и её телефоны"],
    "ko": ["OK 그래 그래", "漢字"],
    "ja": ["カレーを食べる", "東京 2020"],
    "zh": ["卡拉OK很好玩"],
    "sr": ["Кућа", "Kuća"],
    "hi": ["नमस्ते दुनिया"],
    "th": ["สวัสดีครับ"],
}
FOREIGN = {"de": "добрый день", "ru": "dobryj den", "ko": "annyeong", "zh": "ni hao", "hi": "namaste", "fa": "salam"}


@pytest.mark.parametrize("language", FITTING)
def test_texts_in_the_script_of_their_language_fit(language: str) -> None:
    assert all(fits_script(text, language) for text in FITTING[language])
    assert not find_suspects(language, dict(enumerate(FITTING[language])))


@pytest.mark.parametrize("language", FOREIGN)
def test_texts_in_another_script_are_counted(language: str) -> None:
    (message,) = find_suspects(language, {"a": FOREIGN[language], "b": ""})
    assert f"1 of 2 texts are not in the script of '{language}'" in message and "(a: " in message


def test_the_script_of_each_language_is_that_of_unicode() -> None:
    likely = pytest.importorskip("babel.core").get_global("likely_subtags")
    names = {"Cyrl": "Cyrillic", "Arab": "Arabic", "Latn": "Latin", "Hebr": "Hebrew", "Deva": "Devanagari"}
    names |= {"Beng": "Bengali", "Grek": "Greek", "Thai": "Thai", "Hans": "Han", "Hant": "Han", "Jpan": "Hiragana"}
    names |= {"Kore": "Hangul", "Taml": "Tamil", "Telu": "Telugu", "Knda": "Kannada", "Mlym": "Malayalam"}
    names |= {"Armn": "Armenian", "Geor": "Georgian", "Khmr": "Khmer", "Laoo": "Lao", "Mymr": "Myanmar"}
    names |= {"Guru": "Gurmukhi", "Gujr": "Gujarati", "Sinh": "Sinhala", "Ethi": "Ethiopic", "Tibt": "Tibetan"}
    known = {code: names[likely[code].split("_")[1]] for code in LANGUAGES if code in likely}
    assert len(known) > 90 and all(name in scripts(code) for code, name in known.items())


def test_capitals_are_counted_where_there_are_letters_and_from_a_hundredth_on() -> None:
    assert in_capitals("GUTEN TAG.") and in_capitals("ДА")
    assert not any(map(in_capitals, ("Guten Tag", "A", "12", "Ja", "한국어", "唱卡拉OK", "")))
    texts = {number: "gut" for number in range(199)} | {"x": "GUT"}
    assert not find_suspects("de", texts)
    assert find_suspects("de", texts | {"y": "GUT", "z": "GUT"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[unk] ja <noise> gut [laugh]", "ja gut"),
        ("<unk>", ""),
        ("3 < 4 und  5 > 4", "3 < 4 und  5 > 4"),
        ("[so ein Satz]", "[so ein Satz]"),
    ],
)
def test_tags_leave_and_other_texts_stay(text: str, expected: str) -> None:
    assert remove_tags(text) == expected


def test_the_table_beside_the_clips_gives_the_texts(tmp_path: Path) -> None:
    (tmp_path / "cv" / "tr" / "clips").mkdir(parents=True)
    table = tmp_path / "cv" / "tr" / "validated.tsv"
    table.write_text('client_id\tpath\tsentence\ns\ta.mp3\tIlık ve "iyi".\ns\tb.mp3\tİyi\n')
    wav = {
        "s-a": "ffmpeg -i cv/tr/clips/a.mp3 -f wav - |",
        "s-b": f"{tmp_path}/cv/tr/clips/b.mp3",
        "s-c": "cv/tr/clips/c.mp3",
        "s-d": "elsewhere/d.mp3",
    }
    capitals = dict.fromkeys(wav, "IYI")
    texts, tables = restore_texts(KaldiDir(Path("train"), wav, capitals), tmp_path)
    assert texts == {"s-a": 'Ilık ve "iyi".', "s-b": "İyi", "s-c": "IYI", "s-d": "IYI"} and tables == [table]
    table.unlink()
    assert restore_texts(KaldiDir(Path("train"), wav, capitals), tmp_path) == (capitals, [])

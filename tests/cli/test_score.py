"""`lole score`: the error rate of transcripts."""

import pytest

from espnet_lole.cli.main import main


def test_score_reads_transcripts_and_kaldis_text(tmp_path, capsys):
    (tmp_path / "ref").write_text("a Eins zwei, drei\nb vier\n")
    (tmp_path / "hyp").write_text("some/where/b.wav\tvier\na.flac\teins drei\n")
    command = ["score", "--ref", str(tmp_path / "ref"), "--hyp", str(tmp_path / "hyp"), "--lang"]
    assert main([*command, "de"]) == 0
    assert capsys.readouterr().out.startswith("wer 25.00 %: 0 substitutions, 1 deletions, 0 insertions in 4 words of 2")
    assert main([*command, "zh"]) == 0
    assert capsys.readouterr().out.startswith("cer ")
    (tmp_path / "hyp").write_text("a eins\nc vier\n")
    assert main([*command, "de"]) == 1 and "1 of 2 utterances have no hypothesis: b" in capsys.readouterr().err
    (tmp_path / "hyp").write_text("a.wav eins\na.flac vier\n")
    assert main([*command, "de"]) == 1 and "hyp:2: expected one line per id, got 'a' again" in capsys.readouterr().err


def test_score_accepts_spaces_in_the_names_of_files(tmp_path, capsys):
    (tmp_path / "text").write_text("my first.wav\tEins\nmy second.wav\t\n")
    assert main(["score", "--ref", str(tmp_path / "text"), "--hyp", str(tmp_path / "text"), "--lang", "de"]) == 0
    assert "in 1 words of 2 utterances; 1 have no reference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("refs", "hyps"),
    [
        ("s.1 eins\ns.2 zwei", "s.1 eins\ns.2 zwei"),
        ("s.1 eins\ns.2 zwei", "x/s.1.wav\teins\ny/s.2.mp3\tzwei"),
        ("x/1.wav\teins\ny/1.wav\tzwei", "x/1.wav\teins\ny/1.wav\tzwei"),
        ("\ufeffs.1 eins\r\ns.2\tzwei", "s.1.flac\teins\ns.2.flac\tzwei"),
    ],
)
def test_names_match_whole_or_without_folder_and_audio_ending(tmp_path, capsys, refs, hyps):
    (tmp_path / "ref").write_text(refs, encoding="utf-8")
    (tmp_path / "hyp").write_text(hyps, encoding="utf-8")
    assert main(["score", "--ref", str(tmp_path / "ref"), "--hyp", str(tmp_path / "hyp"), "--lang", "de"]) == 0
    assert "wer 0.00 %: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("refs", "hyps", "message"),
    [
        ("s.1 eins", "s.2 eins", "hyp: 1 of 1 utterances have no hypothesis: s.1"),
        ("s.1 eins", "s.wav\teins", "hyp: 1 of 1 utterances have no hypothesis: s.1"),
        ("s eins", "s zw\u00f6lf".encode("latin-1"), "hyp:1: expected UTF-8"),
        ("s\u00a01 eins", "s\u00a01 eins", "ref:1: expected an id without spaces"),
        ("s eins\tzwei", "s eins\tdrei", "ref:1: expected a tab after an id"),
    ],
)
def test_names_that_differ_or_are_ambiguous_are_refused(tmp_path, capsys, refs, hyps, message):
    (tmp_path / "ref").write_text(refs, encoding="utf-8")
    (tmp_path / "hyp").write_bytes(hyps if isinstance(hyps, bytes) else hyps.encode())
    assert main(["score", "--ref", str(tmp_path / "ref"), "--hyp", str(tmp_path / "hyp"), "--lang", "de"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["zh", "zh-CN", "zh_TW", "chinese", "Chinese", "cmn"])
def test_a_language_is_scored_by_its_code_or_name(tmp_path, capsys, name):
    (tmp_path / "ref").write_text("a \u4f60\u597d\n", encoding="utf-8")
    (tmp_path / "hyp").write_text("a \u4f60 \u597d\u5417\n", encoding="utf-8")
    assert main(["score", "--ref", str(tmp_path / "ref"), "--hyp", str(tmp_path / "hyp"), "--lang", name]) == 0
    assert capsys.readouterr().out.startswith("cer 50.00 %: 0 substitutions, 0 deletions, 1 insertions in 2 characters")


@pytest.mark.parametrize("code", ["xx", "", "chines", "z-h"])
def test_unknown_languages_are_refused(tmp_path, capsys, code):
    (tmp_path / "text").write_text("a \u4f60\u597d\n", encoding="utf-8")
    command = ["score", "--ref", str(tmp_path / "text"), "--hyp", str(tmp_path / "text"), "--lang", code]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: --lang: expected a language code of Whisper, got '{code}'; ") and " zh" in error


def test_all_of_a_hypothesis_without_reference_is_inserted(tmp_path, capsys):
    (tmp_path / "ref").write_text("a\nb eins zwei\n")
    (tmp_path / "hyp").write_text("a drei vier f\u00fcnf\nb eins zwei\n", encoding="utf-8")
    assert main(["score", "--ref", str(tmp_path / "ref"), "--hyp", str(tmp_path / "hyp"), "--lang", "de"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("wer 150.00 %: 0 substitutions, 0 deletions, 3 insertions in 2 words of 2 utterances; 1 have")

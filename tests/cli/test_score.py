"""`lole score`: the error rate of transcripts."""

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
    assert main([*command, "de"]) == 1 and "'a' occurs twice" in capsys.readouterr().err


def test_score_accepts_spaces_in_the_names_of_files(tmp_path, capsys):
    (tmp_path / "text").write_text("my first.wav\tEins\nmy second.wav\t\n")
    assert main(["score", "--ref", str(tmp_path / "text"), "--hyp", str(tmp_path / "text"), "--lang", "de"]) == 0
    assert "in 1 words of 1 utterances" in capsys.readouterr().out

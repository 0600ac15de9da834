"""`lole score`: the error rate of transcripts."""

from espnet_lole.cli.main import main


def test_score(tmp_path, capsys):
    (tmp_path / "ref").write_text("a Eins zwei, drei\nb vier\n")
    (tmp_path / "hyp").write_text("some/where/b.wav\tvier\na.flac\teins drei\n")
    command = ["score", "--ref", str(tmp_path / "ref"), "--hyp", str(tmp_path / "hyp"), "--lang"]
    assert main([*command, "de"]) == 0
    assert capsys.readouterr().out.startswith("wer 25.00 %: 0 substitutions, 1 deletions, 0 insertions in 4 words of 2")
    assert main([*command, "zh"]) == 0
    assert capsys.readouterr().out.startswith("cer ")
    (tmp_path / "hyp").write_text("a eins\nc vier\n")
    assert main([*command, "de"]) == 1 and "got 2 in one alone: ['b', 'c']" in capsys.readouterr().err
    (tmp_path / "hyp").write_text("a eins\na vier\n")
    assert main([*command, "de"]) == 1 and "expected each utterance once" in capsys.readouterr().err

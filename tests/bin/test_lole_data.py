"""The command line prepares data stage by stage, and reports a mistake in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from whisper.tokenizer import LANGUAGES

from espnet_lole import languages
from espnet_lole.bin.lole_data import main
from espnet_lole.data.kaldi import KaldiDir, read_table
from espnet_lole.whisper.sizes import Size


@pytest.fixture(autouse=True)
def _few_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a new folder, with two languages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(languages, "whisper_languages", lambda: {"de": "german", "no": "norwegian"})


def test_stages_follow_each_other_and_print_what_they_drop(capsys: pytest.CaptureFixture[str]) -> None:
    content = "languages:\n"
    for lang in ("de", "no"):
        for utts in ("ab", "cd", "ef"):
            folder = Path(f"{lang}_{utts}")
            folder.mkdir()
            soundfile.write(f"{utts[0]}.wav", np.zeros(3200), 16000)
            wav = {utts[0]: f"{utts[0]}.wav", utts[1]: f"/gone/{utts}.wav"}
            KaldiDir(folder, wav, {u: f"eins {u}" for u in utts}, dict.fromkeys(utts, "s")).write(folder)
        content += f"  {lang}: {{train: {lang}_ab, dev: {lang}_cd, test: {lang}_ef}}\n"
    Path("corpus.yaml").write_text(content)
    main(["collect", "--corpus", "corpus.yaml", "--datadir", "data", "--langs", "de no"])
    assert "total |    4   2       0 |    4   2       0 |    4   2       0\n" in capsys.readouterr().out
    main(["perturb", "--src", "data/train", "--dst", "data/train_sp", "--factors", "0.9 1.0"])
    assert "total |    8   4       0\n" in capsys.readouterr().out
    main(["format", "--src", "data/train_sp", "data/dev", "--dst", "dump/org/train", "dump/org/dev", "--nj", "2"])
    out = capsys.readouterr().out
    assert out.count("lang ") == 1 and "no    |    2 0.0   2       2 |    1 0.0   1       1\n" in out
    assert "dropped from no dev: 1 missing file (no_d); all listed in dump/org/dev/skipped\n" in out
    main(["filter", "--src", "dump/org/train", "dump/org/dev", "--dst", "dump/train", "dump/dev", "--langs", "no"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "lang  | utts min spk dropped | utts min spk dropped" and len(lines) == 4
    assert set(read_table("dump/train/utt2lang")) == {"no_a", "sp0.9-no_a"}


@pytest.mark.parametrize(
    ("langs", "backbone", "message"),
    [
        ("yue", "openai/whisper-medium", "corpus.yaml: the backbone has 99 languages, and 'yue' .*whisper-large-v3"),
        ("", "tiny", "corpus.yaml: the backbone has 99 languages, and 'yue'"),
        ("de", "english", "expected a multilingual Whisper"),
        ("de", "nowhere", "expected backbone to be a folder"),
        ("yue", "openai/whisper-large-v3", "expected a Kaldi directory"),
        ("de", "tiny", "expected a Kaldi directory"),
    ],
)
def test_a_backbone_without_the_languages_is_refused_before_anything_is_read(
    langs: str, backbone: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(languages, "whisper_languages", lambda: LANGUAGES)
    Size(8, 1, 1, 1).config().save_pretrained("tiny")
    Size(8, 1, 1, 1, vocab=51864).config().save_pretrained("english")
    sets = "{train: none, dev: none, test: none}"
    Path("corpus.yaml").write_text(f"languages:\n  de: {sets}\n  yue: {sets}\n")
    with pytest.raises(SystemExit, match="1"):
        main(["collect", "--corpus", "corpus.yaml", "--langs", langs, "--backbone", backbone])
    assert re.match(f"error: {message}", capsys.readouterr().err)
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("src", "message"),
    [(["none"], "expected a Kaldi directory at none"), (["a", "b"], "expected a --dst for each --src, got 1 for 2")],
)
def test_a_mistake_is_reported_in_one_line(src: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["format", "--src", *src, "--dst", "dump"])
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1

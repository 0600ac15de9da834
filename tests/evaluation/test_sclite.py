"""The files of ESPnet's scoring, by ESPnet's tokenizers and script, and by ``sclite`` itself ($SCLITE, or on PATH)."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from espnet_lole.evaluation.rates import Counts, Pair, count, format_percent
from espnet_lole.evaluation.sclite import read_result, sum_table, trn_text, write_scores

SCLITE = os.environ.get("SCLITE") or shutil.which("sclite")
ESPNET = Path(os.environ.get("ESPNET_ROOT", "none"), "egs2/TEMPLATE/asr1")
needs_sclite = pytest.mark.skipif(not SCLITE, reason="needs sclite: Debian's package sctk, or $SCLITE")
needs_espnet = pytest.mark.skipif(not ESPNET.is_dir(), reason="needs a checkout of ESPnet at $ESPNET_ROOT")

ODD = [  # speaker, utterance, reference, hypothesis
    ("s", "a(1)", "eins zwei drei", "eins drei drei vier"),
    ("s", "a(2)", "fünf", ""),
    ("S", "A(1)", "", "eins"),
    ("no one", "?-[x]", "a@b {c / d} @ {", "a@b c @"),
    ("q'\"", "#", ";; Ölkäfer (oder) <was> 50 % ~ * [x]", ";; Ölkäfer (was) 50 * [x]"),
    ("-", "--", "Straße 東京 की", "Strasse 東京 कू"),
]


def odd_pairs() -> list[Pair]:
    """Make pairs whose ids and texts have what sclite takes for something else, as ``--normalize none`` leaves them."""
    return [Pair(utt, "de", ref, hyp, speaker) for speaker, utt, ref, hyp in ODD]


def run_sclite(folder: Path, *options: str) -> str:
    """Run sclite as stage 13 of asr.sh does."""
    command = [SCLITE, *options, "-r", "ref.trn", "trn", "-h", "hyp.trn", "trn", "-i", "rm", "-o", "all", "stdout"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout.decode("utf-8", "replace")


def row(report: str) -> list[str]:
    """Return the figures of the row Sum/Avg."""
    (line,) = (line for line in report.splitlines() if "Sum/Avg" in line)
    return line.replace("Sum/Avg", "").replace("|", " ").split()


@needs_sclite
@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_sclite_reads_every_id_and_any_text(tmp_path: Path, metric: str) -> None:
    write_scores(tmp_path, "t", odd_pairs(), metric, "none")
    report = run_sclite(tmp_path, "-s")
    assert row(report) == row((tmp_path / "result.txt").read_text(encoding="utf-8"))
    assert len(set(re.findall(r"^id: .*", report, re.M))) == len(ODD)


@needs_sclite
@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_errors_of_each_utterance_are_sclites(tmp_path: Path, metric: str) -> None:
    rng, pairs = random.Random(metric), []
    for i in range(2000):
        words = [f"w{k}" for k in range(rng.choice([2, 5, 20]))]
        ref = rng.choices(words, k=rng.randint(1, 15))
        hyp = [rng.choice([word, word, word, rng.choice(words)]) for word in ref if rng.random() < 0.9]
        hyp = hyp if rng.random() < 0.7 else rng.choices(words, k=rng.randint(0, 15))
        pairs.append(Pair(f"{i:04}", "de", " ".join(ref), " ".join(hyp), "s"))
    write_scores(tmp_path, "t", pairs, metric, "none")
    report = run_sclite(tmp_path)
    scores = re.findall(r"Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", report)
    counts = [count([pair], metric) for pair in pairs]
    ours = [(c.correct, c.substitutions, c.deletions, c.insertions) for c in counts]
    assert ours == [tuple(map(int, score)) for score in scores]
    assert row(report) == row((tmp_path / "result.txt").read_text(encoding="utf-8"))


@needs_sclite
def test_the_rows_of_speakers_are_sclites(tmp_path: Path) -> None:
    """Names, which sclite cuts at the first - or _, and figures, with a star where a speaker has no words."""
    pairs = [Pair("1", "de", "a b", "a c d", "x"), Pair("2", "de", "", "b", "y"), Pair("3", "de", "b", "b", "x")]
    write_scores(tmp_path, "t", pairs, "wer", "none")
    ours, theirs = (
        [line.strip() for line in text.splitlines() if re.match(r"\s*\| (x|y|SPKR|Sum)", line)][:4]
        for text in ((tmp_path / "result.txt").read_text(encoding="utf-8"), run_sclite(tmp_path))
    )
    assert [re.sub(r"\s+", "", line) for line in ours] == [re.sub(r"\s+", "", line) for line in theirs]


def test_trn_files_are_espnets() -> None:
    """Its tokenizers cut, its stage 13 pastes a tab, speaker and utterance behind."""
    from espnet2.text.char_tokenizer import CharTokenizer
    from espnet2.text.word_tokenizer import WordTokenizer

    for text in ("ein wort", "東京 की", "", "a-b, 'c'"):
        pair = Pair("u", "de", text, text)
        assert trn_text(pair.units("wer")[0]) == " ".join(WordTokenizer(delimiter=" ").text2tokens(text)).strip()
        assert trn_text(pair.units("cer")[0]) == " ".join(CharTokenizer().text2tokens(text))


def test_trn_lines_end_in_speaker_and_utterance(tmp_path: Path) -> None:
    write_scores(
        tmp_path, "t", [Pair("u1", "de", "ein wort", "wort", "s1"), Pair("u2", "zh", "你 好", "", "s2")], "cer", "x"
    )
    assert (tmp_path / "ref.trn").read_text(encoding="utf-8") == "e i n <space> w o r t\t(s1-u1)\n你 好\t(s2-u2)\n"
    assert (tmp_path / "hyp.trn").read_text(encoding="utf-8") == "w o r t\t(s1-u1)\n\t(s2-u2)\n"


def test_result_txt_has_sclites_table_and_says_the_normalisation(tmp_path: Path) -> None:
    write_scores(tmp_path, "decode/test", [Pair("u", "de", "a b c d", "a b d e", "sp")], "wer", "whisper")
    text = (tmp_path / "result.txt").read_text(encoding="utf-8")
    assert text.startswith(
        ",-----------------------------------------------------------------.\n"
        "|                           decode/test                           |\n"
        "|-----------------------------------------------------------------|\n"
        "| SPKR    | # Snt # Wrd | Corr    Sub    Del    Ins    Err  S.Err |\n"
        "|---------+-------------+-----------------------------------------|\n"
        "| sp      |     1     4 | 75.0    0.0   25.0   25.0   50.0  100.0 |\n"
        "|=================================================================|\n"
        "| Sum/Avg |     1     4 | 75.0    0.0   25.0   25.0   50.0  100.0 |\n"
        "`-----------------------------------------------------------------'\n"
        "\nnormalisation: whisper\nempty references, whose hypotheses are insertions: 0\n"
    )
    assert "\n=== u ===\n" in text
    assert read_result(tmp_path / "result.txt", "whisper") == "1 4 75.0 0.0 25.0 25.0 50.0 100.0".split()
    assert read_result(tmp_path / "result.txt", "none") == []


def test_speakers_without_words_have_counts() -> None:
    table = sum_table("t", {"a": Counts(1, 2, 2), "b": Counts(2, insertions=3, sentence_errors=1, empty=2)})
    assert "| b       |     2     0 |   0*     0*     0*     3*     3*   50.0 |" in table


def show_asr_result(lines: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", "\n".join(lines)], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    for metric in ("wer", "cer"):
        folder = tmp_path / f"exp/lole_x/decode_aware/test_de/score_{metric}"
        write_scores(folder, "decode_aware/test_de", [Pair("u", "de", "ein wort", "ein ort", "s")], metric, "none")
    return tmp_path


ROWS = {
    "WER": "|decode_aware/test_de|1|2|50.0|50.0|0.0|0.0|50.0|100.0|",
    "CER": "|decode_aware/test_de|1|8|87.5|0.0|12.5|0.0|12.5|100.0|",
}


def test_espnets_table_of_results_has_our_rows(exp: Path) -> None:
    """The lines of ESPnet's ``show_asr_result.sh`` that read result.txt."""
    for metric, expected in ROWS.items():
        script = rf"""set -euo pipefail; expdir=exp/lole_x type={metric.lower()}
        grep -H -e Avg "${{expdir}}"/*/*/score_${{type}}/result.txt \
            | sed -e "s#${{expdir}}/\([^/]*/[^/]*\)/score_${{type}}/result.txt:#|\1#g" \
            | sed -e 's#Sum/Avg##g' | tr '|' ' ' | tr -s ' ' '|'"""
        done = show_asr_result([script], exp)
        assert (done.returncode, done.stdout.strip()) == (0, expected)


@needs_espnet
def test_espnets_show_asr_result_ends_well(exp: Path) -> None:
    (exp / "utils").symlink_to(ESPNET / "utils")
    path = f"export PATH={Path(sys.executable).parent}:$PATH"
    done = show_asr_result([path, f"{ESPNET}/scripts/utils/show_asr_result.sh exp"], exp)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("|decode")] == list(ROWS.values())


def test_halves_are_rounded_up_as_by_sclite():
    """It prints 46.25 as 46.3 and 6.25 as 6.3."""
    assert [format_percent(100 * k / n) for k, n in ((148, 320), (20, 320), (247, 2000), (0, 3), (1, 3))] == [
        "46.3", "6.3", "12.4", "0.0", "33.3",
    ]  # fmt: skip

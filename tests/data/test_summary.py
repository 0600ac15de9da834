"""The table of what was kept, and the lines on what was not."""

from pathlib import Path

from espnet_lole.data.summary import Tally, summary


def test_a_row_a_language_a_block_a_set_and_reasons_only_where_there_are_any() -> None:
    why = {"a": "missing file: /a.wav", "b": "empty transcript", "c": "missing file: /c.wav"}
    tallies = [
        Tally("train", "de", 1200, 12, 3600.0, why, Path("data/train/skipped")),
        Tally("train", "en", 60, 3, 30.0),
        Tally("test", "de", 5, 1, 6.0, unfit=("x", "y")),
        Tally("dev", "?", 0, 0, 0.0, {"q": "not in utt2lang"}),
    ]
    assert summary(tallies) == [
        "      | train                  | test                 | dev",
        "lang  |  utts  min spk dropped | utts min spk dropped | utts min spk dropped",
        "?     |     -    -   -       - |    -   -   -       - |    0 0.0   0       1",
        "de    | 1,200 60.0  12       3 |    5 0.1   1       0 |    -   -   -       -",
        "en    |    60  0.5   3       0 |    -   -   -       - |    -   -   -       -",
        "total | 1,260 60.5  15       3 |    5 0.1   1       0 |    0 0.0   0       1",
        "dropped from de train: 1 empty transcript (b), 2 missing file (a, ...); all listed in data/train/skipped",
        "dropped from ? dev: 1 not in utt2lang (q)",
        "kept in de test although Whisper takes 0.025 to 30 s, their hypotheses will be empty: 2 (x, ...)",
    ]


def test_lengths_are_in_hours_where_there_are_many_and_left_out_where_unknown() -> None:
    assert summary([Tally("train", "de", 9000, 9, 36000.0)])[1:3] == [
        "lang  |  utts    h spk dropped",
        "de    | 9,000 10.0   9       0",
    ]
    assert summary([Tally("train", "de", 9000, 9)])[1:3] == ["lang  |  utts spk dropped", "de    | 9,000   9       0"]

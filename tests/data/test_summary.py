"""The table of counts, and the lines on what was dropped."""

from pathlib import Path

from espnet_lole.data.summary import Tally, format_summary


def test_each_language_has_a_row_each_set_columns_and_drops_their_reasons() -> None:
    dropped = {"a": "missing file: /a.wav", "b": "empty transcript", "c": "missing file: /c.wav"}
    tallies = [
        Tally("train", "de", 1200, 12, 3600.0, dropped, Path("data/train/skipped")),
        Tally("train", "en", 60, 3, 30.0),
        Tally("test", "de", 5, 1, 6.0, too_short=("x", "y")),
        Tally("dev", "?", 0, 0, 0.0, {"q": "not in utt2lang"}),
    ]
    assert format_summary(tallies) == [
        "      | train                  | test                 | dev",
        "lang  |  utts  min spk dropped | utts min spk dropped | utts min spk dropped",
        "?     |     -    -   -       - |    -   -   -       - |    0 0.0   0       1",
        "de    | 1,200 60.0  12       3 |    5 0.1   1       0 |    -   -   -       -",
        "en    |    60  0.5   3       0 |    -   -   -       - |    -   -   -       -",
        "total | 1,260 60.5  15       3 |    5 0.1   1       0 |    0 0.0   0       1",
        "dropped from de train: 1 empty transcript (b), 2 missing file (a, ...); all listed in data/train/skipped",
        "de test: 2 shorter than 0.025 s (x, ...); the hypotheses will be empty",
        "dropped from ? dev: 1 not in utt2lang (q)",
    ]


def test_durations_are_in_hours_if_long_and_omitted_if_unknown() -> None:
    assert format_summary([Tally("train", "de", 9000, 9, 36000.0)])[1:3] == [
        "lang  |  utts    h spk dropped",
        "de    | 9,000 10.0   9       0",
    ]
    lines = format_summary([Tally("train", "de", 9000, 9)])
    assert lines[1:3] == ["lang  |  utts spk dropped", "de    | 9,000   9       0"]

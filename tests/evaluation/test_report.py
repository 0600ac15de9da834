"""The whole of ``lole_score`` on a small experiment."""

from __future__ import annotations

import csv
from pathlib import Path

import jiwer
import pytest
import yaml
from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

from espnet_lole.bin.lole_score import main
from espnet_lole.evaluation.decodings import describe_decoding, write_decoding
from espnet_lole.evaluation.resources import read_resources, write_resources
from espnet_lole.systems import SCORED_DECODING

REFS = {
    "test_de": {"d1": ("de", "Der Hund bellt."), "d2": ("de", "Gut so!"), "d3": ("de", "...")},
    "test_mix": {"e1": ("en", "The colour."), "z1": ("zh", "你好 吗?"), "d4": ("de", "eins zwei drei vier fünf")},
}
GOOD = {
    "d1": "der hund bellt",
    "d2": "gut",
    "d3": "",
    "e1": "the color",
    "z1": "你 好吗",
    "d4": "eins zwei drei vier fünf",
}
BAD = {"d1": "der mund bellt", "d2": "", "d3": "so", "e1": "a color", "z1": "你好", "d4": "eins zwei drei vier fünf"}


def write_decoded(folder: Path, hyps: dict[str, str], rtf: str | None = None) -> None:
    for name, refs in REFS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{utt} {hyps[utt]}\n" for utt in refs if utt in hyps)
        (folder / name / "text").write_text(lines, encoding="utf-8")
        if rtf is not None:
            (folder / name / "rtf").write_text(rtf, encoding="utf-8")
    write_decoding(folder, describe_decoding([], [Path("dump/raw", name) for name in REFS]))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, refs in REFS.items():
        folder = tmp_path / "dump/raw" / name
        folder.mkdir(parents=True)
        (folder / "text").write_text("".join(f"{utt} {text}\n" for utt, (_, text) in refs.items()), encoding="utf-8")
        (folder / "utt2lang").write_text(
            "".join(f"{utt} {lang}\n" for utt, (lang, _) in refs.items()), encoding="utf-8"
        )
        (folder / "wav.scp").write_text("".join(f"{utt} {utt}.flac\n" for utt in refs), encoding="utf-8")
    write_decoded(tmp_path / "exp/lole_experts/decode_greedy", GOOD, "0.5")
    write_decoded(tmp_path / "exp/lole_zero/decode_greedy", BAD)
    return tmp_path


def run(*decoded: str, seed: int = 0, sets: str = "test_de test_mix", **more: str | None) -> None:
    options = [option for text in decoded for option in ("--decoded", text)]
    options += [word for name, given in more.items() if given for word in (f"--{name}", given)]
    main(["--expdir", "exp", "--dumpdir", "dump/raw", "--test_sets", sets, "--seed", str(seed), *options])


EXPERTS = "experts:aware:exp/lole_experts/decode_greedy"
ZERO = "zero_shot:aware:exp/lole_zero/decode_greedy"


def rows(path: str = "exp/results.csv") -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def value(system: str, test_set: str, language: str, metric: str) -> float:
    key = (system, test_set, language, metric)
    (found,) = [r["value"] for r in rows() if (r["system"], r["set"], r["language"], r["metric"]) == key]
    return float(found)


def test_summary_is_micro_over_a_language_and_macro_over_languages(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(ZERO, EXPERTS)
    summary = capsys.readouterr().out.splitlines()
    assert summary == [
        "|system|scenario|seeds|de|en|zh (CER)|average|real-time factor|",
        "|---|---|---|---|---|---|---|---|",
        "|zero_shot|aware|1|40.0|50.0|33.3|41.1||",
        "|experts|aware|1|**10.0**|**0.0**|**0.0**|**3.3**|0.500|",
    ]


def test_summary_over_seeds(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(EXPERTS)
    write_decoded(work / "exp/lole_experts/decode_greedy", BAD)
    capsys.readouterr()
    run(ZERO, EXPERTS, seed=1)
    zero, experts = capsys.readouterr().out.splitlines()[2:]
    assert zero.startswith("|zero_shot|aware|1|40.0|50.0|")
    assert experts.startswith("|experts|aware|2|**25.0 ± 21.2**|**25.0 ± 35.4**|**16.7 ± 23.6**|**22.2 ± 26.7**|")


def test_the_users_command_is_in_results_md(work: Path) -> None:
    options = ["--expdir", "exp", "--dumpdir", "dump/raw", "--test_sets", "test_de", "--decoded", ZERO]
    main([*options, "--command", "./lole.sh --seed 0"])
    assert "Made by `./lole.sh --seed 0`" in Path("exp/RESULTS.md").read_text(encoding="utf-8")


def test_error_rates_are_jiwers_on_whispers_normalisation(work: Path) -> None:
    run(ZERO)
    texts: dict[str, list[tuple[str, str]]] = {}
    for utt, (lang, ref) in (item for refs in REFS.values() for item in refs.items()):
        normalizer = EnglishTextNormalizer() if lang == "en" else BasicTextNormalizer()
        pair = tuple(" ".join(normalizer(text).split()) for text in (ref, BAD[utt]))
        texts.setdefault(lang, []).append(pair)
    for lang, pairs in texts.items():
        assert value("zero_shot", "all", lang, "wer") == pytest.approx(
            100 * jiwer.wer(*map(list, zip(*pairs, strict=True))), 1e-5
        )


@pytest.mark.parametrize("system", ["zero_shot", "espnet", "espnet_whisper", "espnet_big"])
def test_every_system_predicts_the_language_in_the_agnostic_scenario(
    work: Path, capsys: pytest.CaptureFixture[str], system: str
) -> None:
    for name, refs in REFS.items():
        lines = "".join(f"{utt} {lang if utt != 'd1' else '?'}\n" for utt, (lang, _) in refs.items())
        Path(f"exp/lole_zero/decode_greedy/{name}/lang").write_text(lines)
    run(f"{system}:agnostic:exp/lole_zero/decode_greedy")
    assert "LID accuracy" in capsys.readouterr().out
    assert value(system, "all", "de", "lid_accuracy") == 75.0


def test_a_validation_set_has_its_own_figures_and_is_in_no_average(work: Path) -> None:
    run(ZERO)
    of_set = [row for row in rows() if row["set"] == "test_mix"]
    run(ZERO, valid_set="test_mix")
    assert of_set and [row for row in rows() if row["set"] == "test_mix"] == of_set
    assert value("zero_shot", "all", "de", "wer") == value("zero_shot", "test_de", "de", "wer")
    assert {row["language"] for row in rows() if row["set"] == "all"} == {"de", "average"}


def test_a_trained_system_keeps_the_options_that_it_was_scored_with(work: Path) -> None:
    """The backbone has no folder of a system, and an older decoding has no such file."""
    for experiment in ("lole_experts", "lole_zero"):
        Path(f"exp/{experiment}/decode_greedy/{SCORED_DECODING}").write_text("beam_size: 3\n")
    Path("exp/lole_experts/config.yaml").write_text("system: experts\n")
    run(ZERO, EXPERTS)
    kept = Path(f"exp/lole_experts/{SCORED_DECODING}")
    assert kept.read_text().splitlines()[1:] == ["beam_size: 3"] and yaml.safe_load(kept.read_text()) == {
        "beam_size": 3
    }
    assert not Path(f"exp/lole_zero/{SCORED_DECODING}").exists()


@pytest.mark.parametrize("edited", [False, True])
def test_decoding_options_that_a_user_edited_stay(work: Path, capsys: pytest.CaptureFixture[str], edited: bool) -> None:
    kept, options = (Path("exp/lole_experts", name, SCORED_DECODING) for name in ("", "decode_greedy"))
    Path("exp/lole_experts/config.yaml").write_text("system: experts\n")
    options.write_text("beam_size: 3\n")
    run(EXPERTS)
    if edited:
        kept.write_text(kept.read_text() + "maxlenratio: 0.5\n")
    options.write_text("beam_size: 5\n")
    before = kept.read_text()
    run(EXPERTS)
    assert (kept.read_text() == before) == edited and ("was edited, and stays" in capsys.readouterr().err) == edited
    assert yaml.safe_load(kept.read_text()) == ({"beam_size": 3, "maxlenratio": 0.5} if edited else {"beam_size": 5})


def test_resources_of_training_and_decoding(work: Path) -> None:
    training = {"trained_parameters": 12_345_678, "steps": 40, "seconds": 90.0}
    write_resources(work / "exp/lole_experts", "conf/train.yaml", **training)
    write_resources(work / "exp/lole_experts/decode_greedy", "conf/decode.yaml", parameters=3400, memory_gb=0.5)
    write_resources(work / "exp/lole_zero/decode_greedy", "conf/decode.yaml", parameters=900, memory_gb=0.7)
    run(ZERO, EXPERTS)
    text = Path("exp/RESULTS.md").read_text(encoding="utf-8")
    assert "|system|trained parameters|steps|minutes to train|parameters at inference|memory at inference, GB|" in text
    assert "|zero_shot||||**900**|0.70|\n|experts|12.3M|40|1.5|3.4k|**0.50**|\n" in text
    assert "configurations: `conf/train.yaml` `conf/decode.yaml`" in text


@pytest.mark.parametrize(
    ("text", "message"), [("{}}", "is not JSON"), ('{"speed": 1}', "expected the keys"), ("3", "got 3")]
)
def test_a_broken_resources_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "resources.json").write_text(text)
    with pytest.raises(ValueError, match=rf"resources.json.*{message}"):
        read_resources(tmp_path)


def test_results_md(work: Path) -> None:
    run(ZERO, EXPERTS)
    text = Path("exp/RESULTS.md").read_text(encoding="utf-8")
    parts = [
        "# RESULTS\n",
        "|system|scenario|",
        "BasicTextNormalizer",
        "Made by `python -m espnet_lole.bin.lole_score --expdir exp",
    ]
    parts += ["'test_de test_mix'", "## Environments", "- pytorch version:", "- hardware:"]
    parts += ["## exp/lole_zero\n", "### WER", "### CER", "## exp/lole_experts\n"]
    parts += ["|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|", "|decode_greedy/test_de|3|5|80.0|0.0|20.0|0.0|20.0|33.3|"]
    parts += ["|decode_greedy/test_mix (zh)|1|3|100.0|"]
    start = 0
    for part in parts:
        start = text.index(part, start)
    assert (
        "empty after normalisation, so that their hypotheses count as insertions: zero_shot aware 1, experts aware 1."
        in text
    )
    assert [row for row in rows() if row["system"] == "experts"] == rows("exp/lole_experts/decode_greedy/results.csv")


def test_result_txt(work: Path) -> None:
    run(EXPERTS)
    for metric in ("wer", "cer"):
        text = Path(f"exp/lole_experts/decode_greedy/test_de/score_{metric}/result.txt").read_text(encoding="utf-8")
        assert "\n| SPKR " in text and "\nempty references, whose hypotheses are insertions: 1\n" in text
        assert [line for line in text.splitlines() if line.startswith("=== ")] == [f"=== d{i} ===" for i in (1, 2, 3)]


def test_each_experiment_has_a_results_md_of_all_its_decodings(work: Path) -> None:
    """As ESPnet's ``show_asr_result.sh`` makes it, and of the normalisation of this call alone."""
    write_decoded(work / "exp/lole_experts/decode_beam", BAD)
    write_decoded(work / "exp/lole_experts/decode_raw", BAD)
    run("experts:aware:exp/lole_experts/decode_beam")
    run("experts:aware:exp/lole_experts/decode_raw", normalize="none")
    run(EXPERTS)
    text = Path("exp/lole_experts/RESULTS.md").read_text(encoding="utf-8")
    assert text.startswith("<!-- Generated by ") and "## exp/lole_experts\n" in text
    assert text.count("|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|\n|---|---|---|---|---|---|---|---|---|\n") == 2
    wer = text[text.index("### WER") : text.index("### CER")]
    assert [line.split("|")[1] for line in wer.splitlines() if line.startswith("|decode")] == [
        f"decode_{tag}/{name}" for tag in ("beam", "greedy") for name in REFS
    ]
    assert "|decode_beam/test_de|3|5|40.0|20.0|40.0|20.0|80.0|100.0|" in wer
    assert "text normalisation: `whisper_marks`, Whisper's" in text


def test_figures_of_two_normalisations_are_not_mixed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(EXPERTS)
    files = ("exp/RESULTS.md", "exp/results.csv", "exp/lole_experts/decode_greedy/results.csv")
    before = [Path(name).read_text(encoding="utf-8") for name in files]
    capsys.readouterr()
    run(EXPERTS, normalize="none")
    assert "|experts|aware|1|54.5|100.0|25.0|" in capsys.readouterr().out
    assert [Path(name).read_text(encoding="utf-8") for name in files] == before
    assert "`none`: none, but one space" in Path("exp/RESULTS_none.md").read_text(encoding="utf-8")
    assert {r["system"] for r in rows("exp/results_none.csv")} == {"experts"}
    folder = Path("exp/lole_experts/decode_greedy/test_de/score_wer")
    assert "\nnormalisation: none\n" in (folder / "result.txt").read_text(encoding="utf-8")
    assert (folder / "ref.trn").read_text(encoding="utf-8").startswith("Der Hund bellt.\t(d1-d1)\n")


@pytest.mark.parametrize("folder", ["exp", "exp/lole_experts"])
def test_a_users_results_md_is_not_overwritten(work: Path, folder: str) -> None:
    Path(folder, "RESULTS.md").write_text("my notes\n")
    with pytest.raises(SystemExit, match=f"error: {folder}/RESULTS.md exists already"):
        run(EXPERTS)
    assert Path(folder, "RESULTS.md").read_text() == "my notes\n" and not Path("exp/results.csv").exists()


def test_csv_values(work: Path) -> None:
    run(ZERO, EXPERTS)
    assert value("zero_shot", "test_de", "de", "wer") == value("zero_shot", "test_de", "de", "wer_or_cer") == 80.0
    assert value("zero_shot", "test_mix", "zh", "wer") == 50.0
    assert value("zero_shot", "test_mix", "zh", "wer_or_cer") == value("zero_shot", "test_mix", "zh", "cer") == 33.3333
    assert value("zero_shot", "all", "average", "wer_or_cer") == pytest.approx((40 + 50 + 100 / 3) / 3, abs=1e-4)
    assert value("experts", "test_de", "de", "rtf") == value("experts", "test_mix", "average", "rtf") == 0.5
    assert value("experts", "all", "average", "rtf") == 0.5
    assert not [r for r in rows() if r["system"] == "zero_shot" and r["metric"] == "rtf"]


def test_csv_keeps_others_and_replaces_the_same(work: Path) -> None:
    run(ZERO, EXPERTS)
    before = [r for r in rows() if r["system"] == "zero_shot"]
    write_decoded(work / "exp/lole_experts/decode_greedy", BAD)
    run(EXPERTS, sets="test_mix")
    assert [r for r in rows() if r["system"] == "zero_shot"] == before
    assert {r["set"] for r in rows() if r["system"] == "experts"} == {"test_mix", "all"}
    assert value("experts", "test_mix", "en", "wer_or_cer") == 50.0
    run(EXPERTS, seed=1, sets="test_mix")
    assert {r["seed"] for r in rows() if r["system"] == "experts"} == {"0", "1"}
    assert not list(Path("exp").glob(".*"))


def test_missing_hypotheses(work: Path) -> None:
    write_decoded(work / "exp/lole_zero/decode_greedy", {"d1": "x"})
    with pytest.raises(SystemExit) as caught:
        run(ZERO)
    assert (
        caught.value.code == "error: exp/lole_zero/decode_greedy/test_de: 2 of 3 utterances have no hypothesis: d2 d3"
    )
    assert not Path("exp/results.csv").exists()


@pytest.mark.parametrize(
    ("decoded", "message"),
    [
        (["teacher:aware:exp/x"], "expected a system out of zero_shot experts"),
        (["expertsx:aware:exp/x"], "expected a system out of"),
        (["experts:blind:exp/x"], "expected a scenario of experts out of aware agnostic"),
        (["espnet:aware:exp/x"], "expected a scenario of espnet out of agnostic"),
        (["experts:aware"], "expected --decoded system:scenario:decode_dir"),
        (["experts_r8:aware:exp/none"], "exp/none/decoding.json is not there"),
        ([ZERO, ZERO], "expected different names in --decoded, got zero_shot:aware zero_shot:aware"),
    ],
)
def test_errors(work: Path, decoded: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match="^error: ") as caught:
        run(*decoded)
    assert message in str(caught.value)


def test_other_columns_are_not_overwritten(work: Path) -> None:
    Path("exp/results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="expected the columns system,scenario"):
        run(EXPERTS)
    assert Path("exp/results.csv").read_text() == "a,b\n1,2\n"


def test_seeds_of_other_data_are_not_averaged(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their rows stay in results.csv."""
    for seed, utterances in enumerate((3, 3, 4)):
        folder = work / f"exp/lole_experts_seed{seed}"
        write_decoded(folder / "decode", GOOD)
        (folder / "training.json").write_text(f'{{"seed": {seed}, "train data": {{"utterances": {utterances}}}}}')
    for seed in (2, 1, 0):
        run(f"experts:aware:exp/lole_experts_seed{seed}/decode", seed=seed)
    printed = capsys.readouterr()
    assert "experts aware: seed 2 is left out of RESULTS.md: train data.utterances: 3, now 4" in printed.err
    assert printed.out.splitlines()[-1].startswith("|experts|aware|2|") and {row["seed"] for row in rows()} == set(
        "012"
    )


def test_lid_accuracy_of_agnostic_systems(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = work / "exp/lole_mole/decode_greedy"
    write_decoded(folder, GOOD)
    (folder / "test_de/lang").write_text("d1 de\nd2 en\nd3 de\n")
    (folder / "test_mix/lang").write_text("e1 en\nz1 zh\nd4 -\n")
    run(EXPERTS, "mole:agnostic:exp/lole_mole/decode_greedy")
    assert value("mole", "all", "de", "lid_accuracy") == 50.0
    assert value("mole", "all", "average", "lid_accuracy") == pytest.approx((50 + 100 + 100) / 3, abs=1e-3)
    experts, mole = capsys.readouterr().out.splitlines()[2:]
    assert experts.endswith("||0.500|") and mole.endswith("|83.3||")
    (folder / "test_mix/lang").write_text("e1 en\n")
    with pytest.raises(SystemExit, match="2 of 3 utterances have no language: d4 z1"):
        run("mole:agnostic:exp/lole_mole/decode_greedy")

"""A bundle decodes like its training, wherever it lies."""

import shutil

import numpy as np
import pytest
import yaml
from espnet2.main_funcs.pack_funcs import unpack
from systems import make_recipe

from espnet_lole import Speech2Text
from espnet_lole.cli.main import main
from espnet_lole.inference.search import Hypothesis, SearchConfig
from espnet_lole.systems import SCORED_DECODING

NOISE = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)


def transcribe(folder, lang=None) -> Hypothesis:
    """Return tokens and score; the score differs between systems even if the tokens do not."""
    s2t = Speech2Text.from_pretrained(folder, device="cpu", vad_threshold=0)
    s2t.search = SearchConfig(maxlenratio=0.2)
    return s2t(NOISE, lang)[0][3]


@pytest.mark.parametrize(("system", "lang"), [("mole", None), ("student", None), ("experts", "fr")])
def test_a_bundle_decodes_alike_wherever_it_is(tmp_path, system, lang):
    made = make_recipe(tmp_path / "made")
    before = transcribe(made / "exp" / system, lang)
    (made / "exp" / system / SCORED_DECODING).write_text("beam_size: 3\n")
    assert main(["export", str(made / "exp" / system), str(tmp_path / "here")]) == 0
    assert main(["export", str(tmp_path / "here"), str(tmp_path / "pack.zip")]) == 0
    shutil.rmtree(made)
    (tmp_path / "here").rename(tmp_path / "there")
    assert transcribe(tmp_path / "there", lang) == before
    files = unpack(tmp_path / "pack.zip", tmp_path / "unpacked")
    assert transcribe(tmp_path / "unpacked", lang) == before
    assert yaml.safe_load(open(files["asr_train_config"]))["system"] == system
    assert not list((tmp_path / "there").rglob("*.pth"))
    assert Speech2Text.from_pretrained(tmp_path / "there").search.beam_size == 3


def test_a_whisper_of_which_all_weights_were_trained_is_a_bundle_too(tmp_path):
    made = make_recipe(tmp_path / "made")
    experiment = made / "exp" / "full"
    shutil.copytree(made / "tiny", experiment / "whisper")
    (experiment / "config.yaml").write_text(
        yaml.safe_dump({"system": "full", "backbone": "tiny", "langs": ["de", "fr"]})
    )
    before = transcribe(experiment)
    assert main(["export", str(experiment), str(tmp_path / "full")]) == 0
    shutil.rmtree(made)
    assert transcribe(tmp_path / "full") == before
    assert "fine-tuned on these languages" in (tmp_path / "full" / "README.md").read_text()


@pytest.mark.parametrize("form", ["folder", "merged", "ctranslate2"])
def test_an_experiment_that_was_moved_away_from_its_backbone_is_not_exported_without_it(recipe, tmp_path, capsys, form):
    if form == "ctranslate2":
        pytest.importorskip("ctranslate2", reason="needs the extra formats")
    shutil.copytree(recipe / "exp" / "student", tmp_path / "moved")
    for name in ("tiny", "../../models/tiny"):
        config = yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text()) | {"backbone": name}
        (tmp_path / "moved" / "config.yaml").write_text(yaml.safe_dump(config))
        command = ["export", str(tmp_path / "moved"), str(tmp_path / "out"), "--format", form]
        assert main(command) == 1 and not (tmp_path / "out").exists()
        message = (
            f"was trained on the backbone {name}, which is neither here nor on the hub: give its folder with --backbone"
        )
        assert message in capsys.readouterr().err
    assert main([*command, "--backbone", str(recipe / "tiny")]) == 0

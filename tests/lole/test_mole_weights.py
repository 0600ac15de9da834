"""MoLE's file, and a start from a MoLE of fewer languages."""

import pytest
import torch
from conftest import random_experts, run_frontend
from safetensors.torch import save_file

from espnet_lole.lole.language_classifier import ClassifierConfig
from espnet_lole.lole.mole import FusionConfig, MoLE
from espnet_lole.lole.mole_weights import extend_trained, load_trained, read_trained, save_trained, trained_state

LANGS = ("de", "en", "zh")


def make_mole(shared_layers=2, langs=LANGS, seed=0, hidden=8, **fusion) -> MoLE:
    """Return a MoLE on random experts, with a random classifier."""
    torch.manual_seed(seed)
    experts = random_experts(langs)
    return MoLE(experts, FusionConfig(shared_layers, **fusion), ClassifierConfig(hidden=hidden)).eval()


def randomize(mole: MoLE) -> MoLE:
    """Draw the fusion logits."""
    for layer in mole.frontend.fused.values():
        torch.nn.init.normal_(layer.logits)
    return mole


def test_a_file_makes_another_mole_equal(tmp_path, speech):
    mole, other = randomize(make_mole(seed=1)), make_mole(seed=2)
    save_trained(mole, tmp_path / "mole.safetensors")
    state, fingerprints = read_trained(tmp_path / "mole.safetensors")
    assert fingerprints == mole.fingerprints == other.fingerprints and len(set(fingerprints.values())) == 2
    load_trained(other, state, "the file")
    (shallow, logits), (shallow_too, logits_too) = run_frontend(mole, speech), run_frontend(other, speech)
    assert torch.equal(shallow.states, shallow_too.states) and torch.equal(logits, logits_too)


def test_an_older_file_is_read(tmp_path):
    """It has the fingerprints as tensors, and another name of the logits."""
    mole = make_mole()
    state = trained_state(mole)
    prints = {f"{part}_fingerprint": torch.tensor(n, dtype=torch.float64) for part, n in mole.fingerprints.items()}
    older = state | prints
    older["fusion.raw"] = older.pop("fusion.logits")
    save_file(older, tmp_path / "mole.safetensors")
    read, fingerprints = read_trained(tmp_path / "mole.safetensors")
    assert fingerprints == mole.fingerprints and read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_another_shape_or_a_damaged_file_is_refused(tmp_path):
    file = tmp_path / "mole.safetensors"
    save_trained(make_mole(), file)
    state, _ = read_trained(file)
    with pytest.raises(
        ValueError, match=r"here is no MoLE of the languages de en in this shape: classifier\.mlp\.4\.bias is "
    ):
        load_trained(make_mole(langs=("de", "en")), state, "here")
    with pytest.raises(
        ValueError, match=r"fusion\.logits is torch.Size\(\[12, 2, 3\]\) instead of torch.Size\(\[18, 2, 3\]\)"
    ):
        load_trained(make_mole(shared_layers=3), state, "here")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="mole.safetensors is damaged"):
        read_trained(file)


def test_a_language_is_added_to_a_mole(speech):
    """What the others had stays; the new one's fusion starts as their mean, its classifier row as it is drawn."""
    state = trained_state(randomize(make_mole(langs=("zh", "de", "en"))))
    new = make_mole(langs=("de", "en", "fr", "zh"), seed=1)
    drawn = new.frontend.classifier.mlp[4].bias[2].clone()
    extend_trained(new, state, ["zh", "de", "en"], "the old one")
    fusion = trained_state(new)["fusion.logits"]
    assert torch.equal(fusion[..., [3, 0, 1]], state["fusion.logits"])
    torch.testing.assert_close(fusion[..., 2], state["fusion.logits"].mean(-1))
    mlp = new.frontend.classifier.mlp
    assert torch.equal(mlp[4].bias[[3, 0, 1]], state["classifier.mlp.4.bias"]) and mlp[4].bias[2] == drawn
    assert torch.equal(mlp[1].weight, state["classifier.mlp.1.weight"])
    assert run_frontend(new, speech)[1].shape == (4, 4)


def test_a_language_is_added_without_shared_layers():
    """There is no fusion then: the classifier alone is extended."""
    state = trained_state(make_mole(shared_layers=0))
    new = make_mole(shared_layers=0, langs=(*LANGS, "fr"), seed=1)
    drawn = new.frontend.classifier.mlp[4].weight[len(LANGS)].clone()
    extend_trained(new, state, LANGS, "the old one")
    extended = trained_state(new)
    assert extended.keys() == state.keys() and "fusion.logits" not in extended
    assert torch.equal(extended["classifier.mlp.4.weight"], torch.stack([*state["classifier.mlp.4.weight"], drawn]))
    assert torch.equal(extended["classifier.mlp.1.weight"], state["classifier.mlp.1.weight"])


@pytest.mark.parametrize(
    ("options", "languages", "message"),
    [
        ({}, ["zh", "de", "tr"], r"of the languages de en fr zh, got one of \['tr'\] too"),
        ({}, ["zh", "de"], "the old one is no MoLE .* in this shape: classifier.mlp.4.bias is .*3.* instead of .*2"),
        ({"shared_layers": 3}, ["zh", "de", "en"], "the old one is no MoLE .* in this shape: fusion.logits is"),
        ({"form": "delta"}, ["zh", "de", "en"], "the old one is no MoLE .* in this shape: fusion.logits is"),
        ({"hidden": 16}, ["zh", "de", "en"], "the old one is no MoLE .* in this shape: classifier.mlp.1.bias is"),
    ],
)
def test_a_mole_that_cannot_be_started_from_is_refused(options, languages, message):
    state = trained_state(make_mole(langs=("zh", "de", "en")))
    with pytest.raises(ValueError, match=message):
        extend_trained(make_mole(langs=("de", "en", "fr", "zh"), **options), state, languages, "the old one")

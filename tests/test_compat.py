"""Older configurations are read under today's names; what they can no longer mean is refused."""

import pytest

from espnet_lole.compat import pad_to, rename_config
from espnet_lole.lole.system import SystemConfig

OLDER = {
    "system": "mole",
    "backbone": "x",
    "langs": ["de"],
    "window": "short+1s",
    "checkpointing": True,
    "mole_start": "before",
    "expert_start": None,
    "student_start": "average",
    "distill_conf": {"kd": "layers"},
    "fusion_conf": {"shared_layers": 3, "form": "delta", "weights": "module", "normalise": "free"},
    "lid_class_weights": {},
}


def test_older_keys_and_values_get_todays_names():
    renamed = rename_config(OLDER, "config.yaml")
    assert renamed == {
        "system": "mole",
        "backbone": "x",
        "langs": ["de"],
        "pad_to": "+1s",
        "activation_checkpointing": True,
        "init_mole": "before",
        "init_expert": None,
        "student_init": "average",
        "kd_conf": {"kd": "layers"},
        "fusion_conf": {"shared_layers": 3, "form": "delta", "normalize": "none"},
    }
    config = SystemConfig.parse(renamed)
    assert config.fusion_conf.normalize == "none" and config.kd_conf.kd == "layers" and config.pad_to == "+1s"
    assert rename_config(renamed, "config.yaml") == renamed


@pytest.mark.parametrize(("older", "name"), [("short", "none"), ("short+0.5s", "+0.5s"), ("30s", "30s")])
def test_windows_are_paddings(older, name):
    assert pad_to(older) == name


@pytest.mark.parametrize(("start", "system"), [("random", "multilingual"), ("average", "student")])
def test_a_student_from_a_random_start_without_distillation_is_multilingual(start, system):
    conf = {"system": "student", "student_start": start, "distill_conf": {"kd": "none"}}
    assert rename_config(conf, "config.yaml")["system"] == system


def test_a_student_from_a_random_start_with_distillation_stays_a_student():
    conf = {"system": "student", "student_start": "random", "distill_conf": {"kd": "both"}}
    assert rename_config(conf, "config.yaml")["system"] == "student"


@pytest.mark.parametrize("removed", [{"fusion_conf": {"weights": "layer"}}, {"lid_class_weights": {"de": 2.0}}])
def test_removed_options_with_another_meaning_are_refused(removed):
    with pytest.raises(ValueError, match="exp/config.yaml: .* is not supported any more; train the system again"):
        rename_config(OLDER | removed, "exp/config.yaml")

"""The vocabulary of systems."""

import pytest

from espnet_lole.systems import base_system


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("multilingual_r64", "multilingual"),
        ("student_long", "student"),
        ("espnet_whisper", "espnet_whisper"),
        ("mole", "mole"),
    ]
    + [("espnet_large", "espnet"), ("espnet_whisper_large", "espnet_whisper")],
)
def test_a_variant_has_the_name_of_its_system_and_a_suffix(name, system):
    assert base_system(name) == system


@pytest.mark.parametrize("name", ["other", "moles", "", "full-long"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"expected a system out of zero_shot .*, got '{name}'"):
        base_system(name)

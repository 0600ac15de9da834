from collections import Counter

import numpy as np
from figures import draw_confusion, draw_cosines, draw_energy, draw_fusion, draw_states
from matplotlib import image


def test_pictures_have_ink(tmp_path):
    draw_confusion({"de": Counter(de=3, en=1), "en": Counter({"en": 4, "-": 1})}, tmp_path / "made" / "confusion.png")
    weights = np.full((4, 2, 3), 1 / 3)
    weights[0, 1] = 0.5, 0.3, 0.2
    groups = [f"model.encoder.layers.{i}.fc{j}" for i in (0, 1) for j in (1, 2)]
    draw_fusion(weights, groups, ["de", "en", "zh"], tmp_path / "fusion.png")
    draw_energy({"enc1": np.array([0.5, 1.0]), "dec1": np.array([0.4, 0.9, 1.0])}, {"a rank": 2}, tmp_path / "energy.png")
    draw_cosines({"student": {"enc1": 0.9, "dec1": 0.8}, "other": {"enc1": 0.7, "dec1": 0.6}}, tmp_path / "cosines.png")
    places = np.random.default_rng(0).normal(size=(40, 2))
    draw_states({"one": places, "two": -places}, ["de", "en"] * 20, {"one": "a", "two": "b"}, tmp_path / "states.png")
    for file in (tmp_path / "made" / "confusion.png", *tmp_path.glob("*.png")):
        assert image.imread(file)[..., :3].std() > 0.05

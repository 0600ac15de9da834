from collections import Counter

import numpy as np
from matplotlib import image

from espnet_lole.score.figures import draw_confusion, draw_fusion


def test_pictures_have_ink(tmp_path):
    draw_confusion({"de": Counter(de=3, en=1), "en": Counter({"en": 4, "-": 1})}, tmp_path / "made" / "confusion.png")
    weights = np.full((4, 2, 3), 1 / 3)
    weights[0, 1] = 0.5, 0.3, 0.2
    groups = [f"model.encoder.layers.{i}.fc{j}" for i in (0, 1) for j in (1, 2)]
    draw_fusion(weights, groups, ["de", "en", "zh"], tmp_path / "fusion.png")
    for file in (tmp_path / "made" / "confusion.png", tmp_path / "fusion.png"):
        assert image.imread(file)[..., :3].std() > 0.05

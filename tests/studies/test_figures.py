from collections import Counter

import numpy as np
from figures import draw_confusion, draw_cosines, draw_energy, draw_fusion, draw_states, save
from matplotlib import image


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_the_confusion_has_true_languages_in_rows_and_predicted_ones_in_columns(tmp_path):
    figure = draw_confusion({"de": Counter(de=3, en=1), "en": Counter({"en": 4, "-": 1})})
    (axes,) = figure.axes
    assert ticks(axes.xaxis) == ["-", "de", "en"] and ticks(axes.yaxis) == ["de", "en"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted language", "true language")
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(1, 0): "3", (2, 0): "1", (2, 1): "4", (0, 1): "1"}
    save(figure, tmp_path / "made" / "confusion.png")
    height, width, _ = image.imread(tmp_path / "made" / "confusion.png").shape
    assert (width, height) == tuple(120 * figure.get_size_inches())


def test_fusion_weights_are_drawn_by_factor_around_a_white_uniform_weight():
    weights = np.full((4, 2, 3), 1 / 3)
    weights[0, 1] = 0.5, 0.3, 0.2
    linears = [f"model.encoder.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "k_proj")]
    figure = draw_fusion(weights, linears, ["de", "en", "zh"])
    panels = figure.axes[:2]
    assert [axes.get_title() for axes in panels] == ["weight of A", "weight of B"]
    for i, axes in enumerate(panels):
        (drawn,) = axes.images
        assert np.array_equal(drawn.get_array(), weights[:, i]) and drawn.norm(1 / 3) == 0.5
        assert ticks(axes.xaxis) == ["de", "en", "zh"]
    assert ticks(panels[0].yaxis) == ["0.q_proj", "0.k_proj", "1.q_proj", "1.k_proj"]
    assert [axes.get_title() for axes in draw_fusion(weights[:, :1], linears, ["de", "en", "zh"]).axes[:1]] == [
        "weight of B A"
    ]


def test_energy_is_drawn_in_percent_over_the_rank():
    encoder, decoder = draw_energy({"enc1": np.array([0.5, 1]), "dec1": np.array([0.4, 0.9, 1])}, {"a rank": 2}).axes
    assert (encoder.get_title(), decoder.get_title()) == ("encoder", "decoder")
    line, mark = decoder.lines
    assert np.allclose(line.get_xydata(), [[1, 40], [2, 90], [3, 100]]) and set(mark.get_xdata()) == {2}
    assert [text.get_text() for text in decoder.texts] == ["a rank"]


def test_cosines_have_a_line_for_each_system():
    (axes,) = draw_cosines({"student": {"enc1": 0.9, "dec1": 0.8}, "other": {"enc1": 0.7, "dec1": 0.6}}).axes
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == {
        "student": [0.9, 0.8],
        "other": [0.7, 0.6],
    }


def test_states_have_a_panel_for_each_system_and_points_for_each_language():
    places = np.arange(8.0).reshape(4, 2)
    figure = draw_states({"one": places, "two": -places}, ["en", "de", "en", "de"], {"one": "a", "two": "b"})
    assert [axes.get_title() for axes in figure.axes] == ["one\na", "two\nb"]
    de, en = figure.axes[0].collections
    assert (de.get_label(), en.get_label()) == ("de", "en")
    assert np.array_equal(de.get_offsets(), places[1::2]) and np.array_equal(en.get_offsets(), places[::2])

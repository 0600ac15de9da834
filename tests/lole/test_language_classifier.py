"""The language classifier: statistics of the frames of speech, their standardization, and the loss."""

import pytest
import torch
from torch.nn import functional as F

from espnet_lole.lole.language_classifier import (
    POOLING,
    ClassifierConfig,
    LanguageClassifier,
    RunningNorm,
)
from espnet_lole.whisper.model import Encoded

LANGS = ("de", "en", "zh")


def make_classifier(**options) -> LanguageClassifier:
    torch.manual_seed(0)
    return LanguageClassifier(8, LANGS, ClassifierConfig(**{"hidden": 16, "dropout": 0.0, **options}))


@pytest.mark.parametrize("pooling", POOLING)
def test_padding_does_not_count(pooling):
    classifier = make_classifier(pooling=pooling)
    classifier(Encoded(torch.randn(5, 6, 8), None))
    classifier.eval()
    states, mask = torch.randn(2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    changed = states.clone()
    changed[1, 4:] = 100.0
    _, both = classifier(Encoded(changed, mask))
    torch.testing.assert_close(both, classifier(Encoded(states, mask))[1])
    torch.testing.assert_close(both[1:], classifier(Encoded(states[1:, :4], None))[1])


@pytest.mark.parametrize("pooling", POOLING)
def test_statistics_are_those_of_torch(pooling):
    states = 3 * torch.randn(2, 7, 8) + 1
    statistics = make_classifier(pooling=pooling).pool(Encoded(states, None))
    torch.testing.assert_close(statistics[:, :8], states.mean(1))
    torch.testing.assert_close(statistics[:, 8:16], states.std(1, correction=0))
    if pooling == "mean_std_change":
        torch.testing.assert_close(statistics[:, 16:], (states[:, 2:] - states[:, :-2]).square().mean(1).sqrt())
    else:
        assert statistics.shape == (2, 16)


@pytest.mark.parametrize("pooling", POOLING)
def test_it_learns_languages_of_different_means(pooling):
    classifier = make_classifier(pooling=pooling)
    languages = torch.arange(30) % 3
    states = torch.randn(30, 5, 8) + torch.randn(3, 1, 8)[languages]
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(classifier(Encoded(states, None))[1], languages).backward()
        optimizer.step()
    assert (classifier.eval()(Encoded(states, None))[1].argmax(1) == languages).all()


@pytest.mark.parametrize("pooling", POOLING)
def test_one_short_utterance_is_enough_to_train_on(pooling):
    classifier = make_classifier(pooling=pooling)
    _, logits = classifier(Encoded(torch.randn(1, 1, 8), None))
    logits.sum().backward()
    assert logits.isfinite().all() and all(p.grad.isfinite().all() for p in classifier.parameters())


def test_pooling_is_in_float32_under_autocast():
    classifier, states = make_classifier().eval(), 100 + torch.randn(2, 50, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = classifier(Encoded(states, None))
    for got, expected in zip(inside, classifier(Encoded(states, None)), strict=True):
        assert torch.equal(got, expected)


def test_running_norm_standardizes_by_all_rows_of_training():
    torch.manual_seed(0)
    norm, rows = RunningNorm(4), torch.randn(20, 4) * 3 + 5
    for batch in rows.split([1, 7, 2, 10]):
        norm.update(batch)
    torch.testing.assert_close(norm.mean, rows.mean(0))
    torch.testing.assert_close(norm.variance, rows.var(0, correction=0))
    torch.testing.assert_close(norm(rows), (rows - rows.mean(0)) / rows.std(0, correction=0), atol=1e-4, rtol=1e-4)


def test_decoding_does_not_change_the_norm():
    classifier = make_classifier()
    classifier(Encoded(torch.randn(3, 5, 8), None))
    classifier.eval()(Encoded(torch.randn(3, 5, 8), None))
    assert classifier.norm.count == 3


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [{}, {"de": 3.0}])
def test_loss_is_the_weighted_cross_entropy_of_torch(weights, smoothing):
    """Smoothed in training alone."""
    classifier = make_classifier(class_weights=weights, label_smoothing=smoothing)
    logits, languages = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    weight = torch.tensor([weights.get(lang, 1.0) for lang in LANGS])
    for mode, used in ((True, smoothing), (False, 0.0)):
        total, count = classifier.train(mode).loss(logits, languages)
        torch.testing.assert_close(total / count, F.cross_entropy(logits, languages, weight, label_smoothing=used))


def test_mistakes_are_refused():
    for wrong in ({"pooling": "max"}, {"hidden": 0}, {"dropout": 1.0}, {"label_smoothing": -0.1}, {"replay": 10**6}):
        with pytest.raises(ValueError, match="expected pooling of"):
            ClassifierConfig(**wrong)
    for wrong in ({"tr": 2.0}, {"de": 0.0}):
        with pytest.raises(ValueError, match="expected class_weights above 0 for languages of de en zh, got"):
            make_classifier(class_weights=wrong)

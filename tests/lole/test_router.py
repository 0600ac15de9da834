import pytest
import torch

from espnet_lole.lole import classifier as module
from espnet_lole.lole.classifier import POOLING, ClassifierConfig, LanguageClassifier, RunningNorm, StatisticsMemory
from espnet_lole.lole.routing import RoutingConfig, plan_found, plan_given
from espnet_lole.whisper.model import Encoded

POSTERIORS = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.0, 0.95], [0.25, 0.4, 0.35]])


@pytest.mark.parametrize("pooling", POOLING)
def test_padding_does_not_count(pooling):
    torch.manual_seed(0)
    classifier = LanguageClassifier(8, 3, ClassifierConfig(pooling, hidden=16))
    classifier(Encoded(torch.randn(5, 6, 8), None))
    classifier.eval()
    states, mask = torch.randn(2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    changed = states.clone()
    changed[1, 4:] = 100.0
    both = classifier(Encoded(changed, mask))
    torch.testing.assert_close(both, classifier(Encoded(states, mask)))
    torch.testing.assert_close(both[1:], classifier(Encoded(states[1:, :4], None)))


@pytest.mark.parametrize("pooling", POOLING)
def test_classifier_learns(pooling):
    torch.manual_seed(0)
    classifier = LanguageClassifier(8, 3, ClassifierConfig(pooling, hidden=16, dropout=0.0))
    languages = torch.arange(30) % 3
    states = torch.randn(30, 5, 8) + torch.randn(3, 1, 8)[languages]
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(classifier(Encoded(states, None)), languages).backward()
        optimizer.step()
    assert (classifier(Encoded(states, None)).argmax(1) == languages).all()


@pytest.mark.parametrize("pooling", POOLING)
def test_one_short_utterance_is_enough_to_train_on(pooling):
    classifier = LanguageClassifier(8, 3, ClassifierConfig(pooling))
    scores = classifier(Encoded(torch.randn(1, 1, 8), None))
    scores.sum().backward()
    assert scores.isfinite().all() and all(p.grad.isfinite().all() for p in classifier.parameters())


def test_change_is_the_root_mean_square_over_two_frames():
    states = torch.tensor([1.0, 5.0, 2.0, 3.0])[None, :, None]
    statistics = POOLING["mean_std_change"](1)(states, torch.ones_like(states))
    torch.testing.assert_close(statistics[0, 2], torch.tensor((1.0 + 4.0) / 2).sqrt(), atol=1e-4, rtol=0)


def test_running_norm_knows_all_rows_seen():
    torch.manual_seed(0)
    norm, rows = RunningNorm(4), torch.randn(20, 4) * 3 + 5
    for batch in rows.split([1, 7, 2, 10]):
        norm.update(batch)
    torch.testing.assert_close(norm.mean, rows.mean(0))
    torch.testing.assert_close(norm.variance, rows.var(0, correction=0))
    torch.testing.assert_close(norm(rows).std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_memory_forgets_the_oldest_first(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 6)
    memory = StatisticsMemory()
    for i in range(5):
        memory.add(torch.full((2, 3), float(i)), torch.tensor([i, i]))
        statistics, languages = memory.draw(200)
        assert set(languages.tolist()) == set(range(max(0, i - 2), i + 1))
        assert torch.equal(statistics, languages[:, None].expand(-1, 3).float())
    memory.forget()
    memory.add(torch.zeros(1, 3), torch.tensor([9]))
    assert memory.draw(4)[1].tolist() == [9] * 4


def test_given_languages_are_followed():
    plan = plan_given(torch.tensor([2, 1, 0]))
    assert plan.experts.tolist() == plan.language.tolist() == [0, 1, 2] and plan.rows.tolist() == [2, 1, 0]


def test_argmax_is_the_default():
    plan = plan_found(POSTERIORS, RoutingConfig())
    assert plan.rows.tolist() == [0, 2, 1] and plan.experts.tolist() == [0, 1, 2] and plan.weights is None


def test_mixtures_weigh_the_likeliest_experts():
    plan = plan_found(POSTERIORS, RoutingConfig(experts=2))
    assert plan.experts.tolist() == [[0, 1], [2, 0], [1, 2]] and plan.language.tolist() == [0, 2, 1]
    torch.testing.assert_close(plan.weights, torch.tensor([[7 / 9, 2 / 9], [0.95, 0.05], [8 / 15, 7 / 15]]))
    everything = plan_found(POSTERIORS, RoutingConfig(experts=0))
    assert everything.experts.shape == (3, 3)
    torch.testing.assert_close(everything.weights.sum(1), torch.ones(3))


def test_only_unsure_utterances_get_candidates():
    plan = plan_found(POSTERIORS, RoutingConfig(candidates=2, threshold=0.9))
    assert plan.rows.tolist() == [0, 0, 2, 1, 2] and plan.language.tolist() == [0, 1, 1, 2, 2]


def test_mistakes_are_refused():
    for config in ({"candidates": 0}, {"experts": -1}, {"threshold": 2.0}, {"experts": 2, "candidates": 2}):
        with pytest.raises(ValueError, match="expected"):
            RoutingConfig(**config)
    with pytest.raises(ValueError, match="expected pooling of"):
        ClassifierConfig(pooling="max")

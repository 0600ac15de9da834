import pytest
import torch
from conftest import tiny_whisper

from espnet_lole.inference.search import SearchConfig, beam_rows, cut_loop, search
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

PROMPT = torch.tensor([[50258, 50261, 50359, 50363]])
TOKENIZER = WhisperTokenizer(51865)
EOT = TOKENIZER.eot


@pytest.fixture
def whisper() -> Whisper:
    return Whisper(tiny_whisper()).eval()


@torch.no_grad()
def greedy_one_by_one(whisper, speech, row, limit):
    """Decode one utterance without a cache, the whole prefix again at each step."""
    noise, lengths = speech
    encoded = whisper.encode(noise[row : row + 1, : lengths[row]], lengths[row : row + 1])
    tokens, score = PROMPT[0].tolist(), 0.0
    while True:
        logits = whisper.logits(whisper.decode(torch.tensor([tokens]), encoded))[0, -1, : EOT + 1].log_softmax(-1)
        best = EOT if len(tokens) - 4 >= limit else int(logits.argmax())
        score += float(logits[best])
        if best == EOT:
            return tokens[4:], score / (len(tokens) - 3)
        tokens.append(best)


@torch.no_grad()
def exhaustive_beam(whisper, encoded, k, limit):
    """Search the beam of one utterance in Python lists."""
    beam = [((), 0.0, False)]
    while not all(done for _, _, done in beam):
        grown = []
        for tokens, score, done in beam:
            if done:
                grown.append((tokens, score, True))
                continue
            states = whisper.decode(torch.tensor([[*PROMPT[0].tolist(), *tokens]]), encoded)
            logits = whisper.logits(states)[0, -1, : EOT + 1].log_softmax(-1)
            if len(tokens) >= limit:
                grown.append((tokens, score + float(logits[EOT]), True))
                continue
            values, ids = logits.topk(k)
            for value, token in zip(values.tolist(), ids.tolist(), strict=True):
                grown.append((tokens if token == EOT else (*tokens, token), score + value, token == EOT))
        beam = sorted(grown, key=lambda h: -h[1])[:k]
    return max(((list(t), s / (len(t) + 1)) for t, s, _ in beam), key=lambda h: h[1])


def limits(lengths, ratio=0.2):
    return [max(1, int(ratio * ((n // 160 + 1) // 2))) for n in lengths.tolist()]


@torch.no_grad()
def test_greedy_in_a_batch_is_greedy_alone_without_a_cache(whisper, speech):
    hypotheses = search(
        whisper, whisper.encode(*speech), PROMPT.expand(4, -1), TOKENIZER, SearchConfig(maxlenratio=0.2)
    )
    for row, limit in enumerate(limits(speech[1])):
        tokens, score = greedy_one_by_one(whisper, speech, row, limit)
        assert hypotheses[row].tokens == tokens
        assert hypotheses[row].score == pytest.approx(score, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("k", [2, 5])
def test_beam_in_a_batch_is_a_plain_beam_search(whisper, speech, k):
    hypotheses = search(
        whisper, whisper.encode(*speech), PROMPT.expand(4, -1), TOKENIZER, SearchConfig(k, maxlenratio=0.2)
    )
    noise, lengths = speech
    for row, limit in enumerate(limits(lengths)):
        encoded = whisper.encode(noise[row : row + 1, : lengths[row]], lengths[row : row + 1])
        tokens, score = exhaustive_beam(whisper, encoded, k, limit)
        assert hypotheses[row].tokens == tokens
        assert hypotheses[row].score == pytest.approx(score, abs=1e-3)


def test_beam_rows_repeats_each_utterance():
    assert beam_rows(torch.tensor([3, 7]), 2).tolist() == [3, 3, 7, 7]


@pytest.mark.parametrize("wrong", [{"beam_size": 0}, {"maxlenratio": -1.0}, {"length_penalty": -1.0}])
def test_impossible_searches_are_refused(wrong):
    with pytest.raises(ValueError, match="expected beam_size"):
        SearchConfig(**wrong)


@pytest.mark.parametrize(
    ("tokens", "cut"),
    [
        ([7, 1, 1, 1, 1, 1, 1], [7, 1]),
        ([7, 1, 2, 1, 2, 1, 2], [7, 1, 2]),
        ([7, 2, 1, 2, 1, 2, 1, 2], [7, 2, 1]),
        ([7, 1, 1, 1, 1, 1], [7, 1, 1, 1, 1, 1]),  # five, not six
        ([1, 2, 3, 1, 2, 3], [1, 2, 3, 1, 2, 3]),  # twice only
        ([1, 1, 1, 1, 1, 1, 7], [1, 1, 1, 1, 1, 1, 7]),  # it went on
        ([], []),
    ],
)
def test_a_loop_is_cut_to_one_phrase(tokens, cut):
    assert cut_loop(tokens, 6) == cut


@torch.no_grad()
def test_a_loop_ends_the_search(whisper, speech, monkeypatch):
    """With one token so likely that every hypothesis repeats it."""
    steps = []

    def logits(states):
        steps.append(None)
        return torch.zeros(*states.shape[:-1], EOT + 2).index_fill(-1, torch.tensor([11]), 9.0)

    monkeypatch.setattr(whisper, "logits", logits)
    encoded, prompts = whisper.encode(*speech), PROMPT.expand(4, -1)
    assert [h.tokens for h in search(whisper, encoded, prompts, TOKENIZER, SearchConfig(loop_tokens=6))] == [[11]] * 4
    assert len(steps) == 7
    assert all(len(h.tokens) > 50 for h in search(whisper, encoded, prompts, TOKENIZER, SearchConfig(loop_tokens=0)))


@torch.no_grad()
def test_a_hypothesis_without_a_loop_is_better(whisper, speech, monkeypatch):
    def logits(states):
        likely = torch.full((*states.shape[:-1], EOT + 1), -50.0)
        likely[..., 11], likely[..., EOT] = 9.0, 0.0
        return likely

    monkeypatch.setattr(whisper, "logits", logits)
    hypotheses = search(
        whisper, whisper.encode(*speech), PROMPT.expand(4, -1), TOKENIZER, SearchConfig(2, loop_tokens=6)
    )
    assert all(h.tokens.count(11) < 6 for h in hypotheses)


def test_a_loop_of_less_than_three_phrases_is_refused():
    with pytest.raises(ValueError, match="loop_tokens of 0, or 3 or more"):
        SearchConfig(loop_tokens=2)

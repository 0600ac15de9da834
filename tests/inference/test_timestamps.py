import pytest
import torch
from conftest import openai_model, tiny_whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.decoding import ApplyTimestampRules, DecodingOptions, decode
from whisper.tokenizer import get_tokenizer

from espnet_lole import Speech2Text
from espnet_lole.inference.search import SearchConfig, search
from espnet_lole.inference.timestamps import apply_timestamp_rules, split_at_timestamps
from espnet_lole.whisper.model import Whisper
from espnet_lole.whisper.tokenizer import WhisperTokenizer

TOKENIZER = WhisperTokenizer(51865)
BEGIN, EOT = TOKENIZER.timestamp_begin, TOKENIZER.eot
PROMPT = torch.tensor([TOKENIZER.prompt("de", timestamps=True)])
SPECIAL = list(range(TOKENIZER.sot, BEGIN))


def lively(seed: int):
    """Make a random Whisper whose hypotheses have timestamps, text and an end."""
    model = tiny_whisper(seed)
    with torch.no_grad():
        model.model.decoder.embed_positions.weight.normal_(generator=torch.Generator().manual_seed(5))
        model.model.decoder.embed_tokens.weight[:EOT] *= 0.3
        model.model.decoder.embed_tokens.weight[EOT] *= 3
    return model


def openai_log_probs(logits: torch.Tensor, tokens: torch.Tensor, vocab: int = 51865) -> torch.Tensor:
    """Apply openai-whisper's own filter to logits (N, V) of hypotheses (N, U)."""
    logits = logits.clone()
    tokenizer = get_tokenizer(True, num_languages=99 if vocab == 51865 else 100)
    logits[:, tokenizer.sot : tokenizer.timestamp_begin] = -torch.inf
    ApplyTimestampRules(tokenizer, 0, 50).apply(logits, tokens)
    return logits.log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize(("seed", "ending"), [(1, 3), (2, 3), (3, 1)])
def test_greedy_is_openai_whispers(seed, ending):
    """In a batch of three; openai-whisper gives a forced end no score, so scores are compared without forced ends."""
    model = lively(seed)
    whisper = Whisper(model).eval()
    noise = torch.randn(3, 480_000, generator=torch.Generator().manual_seed(1)) * torch.tensor([[0.01], [0.1], [1.0]])
    noise[0, 100_000:] = 0
    noise[2] *= torch.sin(torch.arange(480_000) / 3)
    lengths = torch.full((3,), 480_000)
    options = DecodingOptions(language="de", fp16=False, suppress_tokens=SPECIAL)
    expected = decode(openai_model(model), whisper.features(noise, lengths)[0], options)
    hypotheses = search(
        whisper, whisper.encode(noise, lengths), PROMPT.expand(3, -1), TOKENIZER, SearchConfig(timestamps=True)
    )
    assert [h.tokens for h in hypotheses] == [e.tokens for e in expected]
    assert max(sum(t >= BEGIN for t in h.tokens) for h in hypotheses) > 5
    ended = [row for row, h in enumerate(hypotheses) if len(h.tokens) < 224]
    assert len(ended) == ending
    assert [hypotheses[row].score for row in ended] == pytest.approx(
        [expected[row].avg_logprob for row in ended], abs=1e-4
    )


@torch.no_grad()
def plain_beam(whisper, encoded, k, limit):
    """Search the beam of one utterance in Python lists, without a cache, with openai-whisper's filter."""
    beam = [((), 0.0)]
    for _ in range(limit):
        grown = []
        for tokens, score in beam:
            if tokens and tokens[-1] == EOT:
                grown.append((tokens, score))
                continue
            logits = whisper.logits(whisper.decode(torch.tensor([[*PROMPT[0].tolist(), *tokens]]), encoded))[:, -1]
            values, ids = openai_log_probs(logits, torch.tensor([tokens], dtype=torch.long))[0].topk(k)
            grown += [((*tokens, i), score + v) for v, i in zip(values.tolist(), ids.tolist(), strict=True)]
        beam = sorted(grown, key=lambda h: -h[1])[:k]
    ended = [(list(tokens[:-1]), score / len(tokens)) for tokens, score in beam if tokens[-1] == EOT]
    assert len(ended) == k  # none reached the limit
    return max(ended, key=lambda h: h[1])


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 3])
def test_search_in_a_batch_is_a_plain_search_with_openai_whispers_rules(speech, k):
    whisper = Whisper(lively(2)).eval()
    noise, lengths = speech
    config = SearchConfig(k, timestamps=True)
    for row, hypothesis in enumerate(search(whisper, whisper.encode(*speech), PROMPT.expand(4, -1), TOKENIZER, config)):
        alone = whisper.encode(noise[row : row + 1, : lengths[row]], lengths[row : row + 1])
        tokens, score = plain_beam(whisper, alone, k, 40)
        assert hypothesis.tokens == tokens and any(t < EOT for t in tokens)
        assert hypothesis.score == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("vocab", [51865, 51866])
def test_rules_are_openai_whispers_all_along_random_hypotheses(vocab):
    generator, tokenizer = torch.Generator().manual_seed(0), WhisperTokenizer(vocab)
    begin, eot = tokenizer.timestamp_begin, tokenizer.eot
    tokens, patterns = torch.zeros(6, 0, dtype=torch.long), set()
    for step in range(30):
        logits = 3 * torch.randn(6, vocab, generator=generator)
        distance = (torch.arange(1501) - 50 * step).abs()
        logits[:, begin:] += 4 * torch.rand(6, 1, generator=generator) - 0.02 * distance
        expected = openai_log_probs(logits, tokens, vocab)
        must_end = torch.zeros(2, 3, dtype=torch.bool)
        log_probs = apply_timestamp_rules(logits.view(2, 3, -1), tokens.view(2, 3, -1), must_end, tokenizer).view(6, -1)
        assert torch.equal(log_probs.isinf(), expected.isinf())
        torch.testing.assert_close(log_probs, expected)
        going_on = expected.clone()
        going_on[:, eot] = -torch.inf  # hypotheses end only where they must
        going_on = torch.where(going_on.isinf().all(-1, keepdim=True), expected, going_on)
        tokens = torch.cat([tokens, going_on.softmax(-1).multinomial(1, generator=generator)], dim=1)
        patterns |= {tuple(row >= begin) for row in tokens[:, -3:].numpy()}
    assert {(False, True, True), (True, True, False), (True, False, True), (False, False, False)} <= patterns


def test_timestamps_do_not_forbid_an_end_that_must_come():
    logits, tokens = torch.zeros(1, 2, 51865), torch.tensor([[[BEGIN, 11]] * 2])
    logits[..., BEGIN:] = 9.0
    free, must_end = apply_timestamp_rules(logits, tokens, torch.tensor([[False, True]]), TOKENIZER)[0]
    assert free[EOT] == -torch.inf and must_end[EOT].isfinite()


def at(seconds: float) -> int:
    return BEGIN + round(seconds / 0.02)


@pytest.mark.parametrize(
    ("ids", "segments"),
    [
        ([at(0), 1, 2, at(1), at(1), 3, at(2.5)], [(0, 1, [1, 2]), (1, 2.5, [3])]),
        ([at(0.4), 1, at(1), at(2), 2, at(3)], [(0.4, 1, [1]), (2, 3, [2])]),  # a pause between segments
        ([at(0), 1, at(1), at(1), 2], [(0, 1, [1]), (1, 4.01, [2])]),  # no last timestamp
        ([at(0), 1, at(1), at(3)], [(0, 1, [1])]),  # a segment without text
        ([at(1), 1, at(9), at(9), 2, at(10)], [(1, 4.01, [1, 2])]),  # after the end of the speech
        ([at(1), 1, at(4), at(4), 2], [(1, 4.01, [1, 2])]),  # a second segment without duration
        ([at(5), 1, at(6)], [(0, 4.01, [1])]),
        ([1, 2], [(0, 4.01, [1, 2])]),  # no timestamps
        ([at(0)], [(0, 4.01, [])]),
        ([], [(0, 4.01, [])]),
    ],
)
def test_segments_of_hypotheses(ids, segments):
    assert split_at_timestamps(ids, 4.01, TOKENIZER) == segments


PARTS = st.lists(
    st.tuples(st.integers(0, 300), st.integers(1, 300), st.lists(st.integers(0, EOT - 1), max_size=3)), max_size=6
)


@given(PARTS, st.integers(400, 480_000), st.booleans())
@settings(max_examples=200, deadline=None)
def test_segments_follow_each_other_within_the_speech_and_lose_no_text(parts, samples, unfinished):
    ids, newest = [], 0
    for pause, length, text in parts:
        start, newest = min(newest + pause, 1500), min(newest + pause + length, 1500)
        ids += [BEGIN + start, *text, BEGIN + newest]
    segments = split_at_timestamps(ids[:-1] if unfinished else ids, samples / 16_000, TOKENIZER)
    edges = [edge for start, end, _ in segments for edge in (start, end)]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= samples / 16_000
    assert all(end - start > 0.0199 for start, end, _ in segments)
    assert [t for _, _, text in segments for t in text] == [t for t in ids if t < BEGIN]


def test_timestamps_need_tokens_for_a_segment_and_a_vocabulary(tmp_path):
    with pytest.raises(ValueError, match=r"maxlenratio 0.001 allows 30 s of speech 1 tokens, but timestamps need 3"):
        SearchConfig(timestamps=True, maxlenratio=0.001)
    assert SearchConfig(timestamps=True, maxlenratio=0.002).timestamps
    tiny_whisper(vocab=51864).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a multilingual Whisper with a vocabulary of .*, got 51864"):
        Speech2Text.from_pretrained(tmp_path, timestamps=True)


@torch.no_grad()
def test_a_short_utterance_has_room_for_a_segment(speech):
    whisper = Whisper(lively(2)).eval()
    config = SearchConfig(timestamps=True, maxlenratio=0.002)
    for hypothesis in search(whisper, whisper.encode(*speech), PROMPT.expand(4, -1), TOKENIZER, config):
        assert [t >= BEGIN for t in hypothesis.tokens] == [True, False, True]

import pytest
import torch
from conftest import openai_model, tiny_whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.decoding import ApplyTimestampRules, DecodingOptions, decode
from whisper.tokenizer import get_tokenizer

from espnet_lole import Speech2Text
from espnet_lole.inference.search import SearchConfig, search
from espnet_lole.inference.timestamps import TimedText, cut_at_times, restrict
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

TOKENS = WhisperTokens(51865)
FIRST, END = TOKENS.first_time, TOKENS.end
PROMPT = torch.tensor([TOKENS.prompt("de", timestamps=True)])
SPECIAL = list(range(TOKENS.start, FIRST))


def lively(seed: int):
    """A random Whisper whose hypotheses have times, text and an end."""
    model = tiny_whisper(seed)
    with torch.no_grad():
        model.model.decoder.embed_positions.weight.normal_(generator=torch.Generator().manual_seed(5))
        model.model.decoder.embed_tokens.weight[:END] *= 0.3
        model.model.decoder.embed_tokens.weight[END] *= 3
    return model


def whispers_log_probs(logits: torch.Tensor, chosen: torch.Tensor, vocab: int = 51865) -> torch.Tensor:
    """openai-whisper's own filter on scores (N, V) of hypotheses (N, U)."""
    logits = logits.clone()
    tokenizer = get_tokenizer(True, num_languages=99 if vocab == 51865 else 100)
    logits[:, tokenizer.sot : tokenizer.timestamp_begin] = -torch.inf
    ApplyTimestampRules(tokenizer, 0, 50).apply(logits, chosen)
    return logits.log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize(("seed", "ending"), [(1, 3), (2, 3), (3, 1)])
def test_greedy_is_openai_whispers(seed, ending):
    """Three half minutes at once, of which so many hypotheses end by themselves; only this search charges a forced end."""
    model = lively(seed)
    backbone = Backbone(model).eval()
    noise = torch.randn(3, 480_000, generator=torch.Generator().manual_seed(1)) * torch.tensor([[0.01], [0.1], [1.0]])
    noise[0, 100_000:] = 0
    noise[2] *= torch.sin(torch.arange(480_000) / 3)
    lengths = torch.full((3,), 480_000)
    options = DecodingOptions(language="de", fp16=False, suppress_tokens=SPECIAL)
    theirs = decode(openai_model(model), backbone.features(noise, lengths)[0], options)
    ours = search(backbone, backbone.encode(noise, lengths), PROMPT.expand(3, -1), TOKENS, SearchConfig(timestamps=True))
    assert [found.tokens for found in ours] == [expected.tokens for expected in theirs]
    assert max(sum(t >= FIRST for t in found.tokens) for found in ours) > 5
    ended = [row for row, found in enumerate(ours) if len(found.tokens) < 224]
    assert len(ended) == ending
    assert [ours[row].score for row in ended] == pytest.approx([theirs[row].avg_logprob for row in ended], abs=1e-4)


@torch.no_grad()
def plain_beam(backbone, encoded, k, limit):
    """The reference: beam search over lists of one utterance, without a cache, with openai-whisper's filter."""
    beam = [((), 0.0)]
    for _ in range(limit):
        grown = []
        for tokens, score in beam:
            if tokens and tokens[-1] == END:
                grown.append((tokens, score))
                continue
            logits = backbone.logits(backbone.decode(torch.tensor([[*PROMPT[0].tolist(), *tokens]]), encoded))[:, -1]
            values, ids = whispers_log_probs(logits, torch.tensor([tokens], dtype=torch.long))[0].topk(k)
            grown += [((*tokens, i), score + v) for v, i in zip(values.tolist(), ids.tolist(), strict=True)]
        beam = sorted(grown, key=lambda h: -h[1])[:k]
    ended = [(list(tokens[:-1]), score / len(tokens)) for tokens, score in beam if tokens[-1] == END]
    assert len(ended) == k  # none was cut off
    return max(ended, key=lambda h: h[1])


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 3])
def test_search_in_a_batch_is_a_plain_search_with_openai_whispers_rules(speech, k):
    backbone = Backbone(lively(2)).eval()
    noise, lengths = speech
    config = SearchConfig(k, timestamps=True)
    for row, found in enumerate(search(backbone, backbone.encode(*speech), PROMPT.expand(4, -1), TOKENS, config)):
        alone = backbone.encode(noise[row : row + 1, : lengths[row]], lengths[row : row + 1])
        tokens, score = plain_beam(backbone, alone, k, 40)
        assert found.tokens == tokens and any(t < END for t in tokens)
        assert found.score == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("vocab", [51865, 51866])
def test_rules_are_openai_whispers_all_along_random_hypotheses(vocab):
    generator, tokens = torch.Generator().manual_seed(0), WhisperTokens(vocab)
    chosen, kinds = torch.zeros(6, 0, dtype=torch.long), set()
    for step in range(30):
        logits = 3 * torch.randn(6, vocab, generator=generator)
        late = (torch.arange(1501) - 50 * step).abs()
        logits[:, tokens.first_time :] += 4 * torch.rand(6, 1, generator=generator) - 0.02 * late
        expected = whispers_log_probs(logits, chosen, vocab)
        found = restrict(logits.view(2, 3, -1), chosen.view(2, 3, -1), torch.zeros(2, 3, dtype=torch.bool), tokens).view(6, -1)
        assert torch.equal(found.isinf(), expected.isinf())
        torch.testing.assert_close(found, expected)
        likely = expected.clone()
        likely[:, tokens.end] = -torch.inf  # they shall go on, unless they have to end
        likely = torch.where(likely.isinf().all(-1, keepdim=True), expected, likely)
        chosen = torch.cat([chosen, likely.softmax(-1).multinomial(1, generator=generator)], dim=1)
        kinds |= {tuple(row >= tokens.first_time) for row in chosen[:, -3:].numpy()}
    assert {(False, True, True), (True, True, False), (True, False, True), (False, False, False)} <= kinds


def test_where_the_end_must_come_times_do_not_forbid_it():
    logits, chosen = torch.zeros(1, 2, 51865), torch.tensor([[[FIRST, 11]] * 2])
    logits[..., FIRST:] = 9.0
    free, ends = restrict(logits, chosen, torch.tensor([[False, True]]), TOKENS)[0]
    assert free[END] == -torch.inf and ends[END].isfinite()


def at(seconds: float) -> int:
    return FIRST + round(seconds / 0.02)


@pytest.mark.parametrize(
    ("ids", "segments"),
    [
        ([at(0), 1, 2, at(1), at(1), 3, at(2.5)], [(0, 1, [1, 2]), (1, 2.5, [3])]),
        ([at(0.4), 1, at(1), at(2), 2, at(3)], [(0.4, 1, [1]), (2, 3, [2])]),  # a pause between them
        ([at(0), 1, at(1), at(1), 2], [(0, 1, [1]), (1, 4.01, [2])]),  # without a last time
        ([at(0), 1, at(1), at(3)], [(0, 1, [1])]),  # a segment without text
        ([at(1), 1, at(9), at(9), 2, at(10)], [(1, 4.01, [1, 2])]),  # behind the end of the speech
        ([at(1), 1, at(4), at(4), 2], [(1, 4.01, [1, 2])]),  # too near it
        ([at(5), 1, at(6)], [(0, 4.01, [1])]),
        ([1, 2], [(0, 4.01, [1, 2])]),  # no times
        ([at(0)], [(0, 4.01, [])]),
        ([], [(0, 4.01, [])]),
    ],
)
def test_segments_of_hypotheses(ids, segments):
    assert cut_at_times(ids, 4.01, TOKENS) == [TimedText(*segment) for segment in segments]


PARTS = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300), st.lists(st.integers(0, END - 1), max_size=3)), max_size=6)


@given(PARTS, st.integers(400, 480_000), st.booleans())
@settings(max_examples=200, deadline=None)
def test_segments_follow_each_other_within_the_speech_and_lose_no_text(parts, samples, unfinished):
    ids, newest = [], 0
    for pause, length, text in parts:
        start, newest = min(newest + pause, 1500), min(newest + pause + length, 1500)
        ids += [FIRST + start, *text, FIRST + newest]
    found = cut_at_times(ids[:-1] if unfinished else ids, samples / 16_000, TOKENS)
    edges = [edge for segment in found for edge in (segment.start, segment.end)]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= samples / 16_000
    assert all(segment.end - segment.start > 0.0199 for segment in found)
    assert [t for segment in found for t in segment.tokens] == [t for t in ids if t < FIRST]


def test_no_room_and_no_tokens_for_times_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a maxlenratio that leaves 30 s 3 tokens .* got 0.001, which leaves 1: raise it"):
        SearchConfig(timestamps=True, maxlenratio=0.001)
    assert SearchConfig(timestamps=True, maxlenratio=0.002).timestamps
    tiny_whisper(vocab=51864).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a multilingual Whisper with a vocabulary of .*, got 51864"):
        Speech2Text.from_pretrained(tmp_path, timestamps=True)


@torch.no_grad()
def test_a_short_utterance_has_room_for_a_segment(speech):
    backbone = Backbone(lively(2)).eval()
    config = SearchConfig(timestamps=True, maxlenratio=0.002)
    for found in search(backbone, backbone.encode(*speech), PROMPT.expand(4, -1), TOKENS, config):
        assert [t >= FIRST for t in found.tokens] == [True, False, True]

"""Whisper against the stock model of transformers and openai-whisper."""

import numpy as np
import pytest
import torch
from conftest import openai_model, tiny_whisper

from espnet_lole.whisper.model import Encoded, Whisper

TOKENS = torch.tensor([[50258, 50259, 50359, 50363, 11, 22, 33]])


def half_minute() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, 480_000, generator=torch.Generator().manual_seed(1)) * 0.1, torch.tensor([480_000])


@torch.no_grad()
def test_30_seconds_are_computed_as_transformers_and_openai_whisper_do():
    model = tiny_whisper()
    speech, lengths = half_minute()
    whisper = Whisper(model).eval()
    mel, _ = whisper.features(speech, lengths)
    stock = model(input_features=mel, decoder_input_ids=TOKENS)
    encoded = whisper.encode(speech, lengths)
    logits = whisper.logits(whisper.decode(TOKENS, encoded))
    torch.testing.assert_close(encoded.states, stock.encoder_last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, stock.logits, atol=1e-3, rtol=1e-4)
    openai = openai_model(model)
    torch.testing.assert_close(encoded.states, openai.embed_audio(mel), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, openai.logits(TOKENS, encoded.states), atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_padding_to_30s_is_the_stock_model_on_padded_audio(speech):
    model = tiny_whisper()
    whisper = Whisper(model, pad_to="30s").eval()
    noise, lengths = speech
    padded = np.zeros(480_000, dtype=np.float32)
    padded[: lengths[1]] = noise[1, : lengths[1]]
    mel, _ = whisper.features(torch.from_numpy(padded)[None], torch.tensor([480_000]))
    encoded = whisper.encode(noise, lengths)
    torch.testing.assert_close(encoded.states[1:2], model.model.encoder(mel).last_hidden_state, atol=1e-4, rtol=1e-4)
    assert encoded.mask is None


@torch.no_grad()
@pytest.mark.parametrize("seconds", [0.5, 1.25])
def test_silence_is_appended_to_each_utterance(speech, seconds):
    whisper, plain = Whisper(tiny_whisper(), pad_to=f"+{seconds}s").eval(), Whisper(tiny_whisper()).eval()
    noise, lengths = speech
    states = whisper.encode(noise, lengths).states
    for row, length in enumerate(lengths.tolist()):
        longer = torch.zeros(1, length + int(seconds * 16_000))
        longer[0, :length] = noise[row, :length]
        assert longer.shape[1] == whisper.input_samples(length)
        alone = plain.encode(longer, torch.tensor([longer.shape[1]])).states
        torch.testing.assert_close(states[row : row + 1, : alone.shape[1]], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_batch_may_be_padded_to_30s_as_other_runtimes_pad(speech):
    """The oracles: a Whisper of 30 s for transformers, faster-whisper's own features and padding."""
    audio = pytest.importorskip("faster_whisper.audio", reason="needs the extra formats")
    from faster_whisper.feature_extractor import FeatureExtractor

    whisper, whole = Whisper(tiny_whisper(), "+1s").eval(), Whisper(tiny_whisper(), "30s").eval()
    silence = whisper.embed_speech(*speech, "silence")
    assert torch.equal(silence.states, whole.embed_speech(*speech).states) and silence.mask is None
    zeros = whisper.embed_speech(*speech, "zeros")
    assert zeros.states.shape == silence.states.shape and zeros.mask is None
    for row, length in enumerate(speech[1].tolist()):
        mel = FeatureExtractor()(speech[0][row, :length].numpy(), padding=0)
        padded = torch.from_numpy(audio.pad_or_trim(mel))[None]
        expected = whisper.embed_mel(padded, torch.tensor([3000])).states
        torch.testing.assert_close(zeros.states[row : row + 1], expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_silence_ends_at_30_seconds():
    speech, _ = half_minute()
    whisper, whole = Whisper(tiny_whisper(), "+2s").eval(), Whisper(tiny_whisper(), "30s").eval()
    lengths = torch.tensor([29 * 16_000])
    assert torch.equal(whisper.encode(speech, lengths).states, whole.encode(speech, lengths).states)


@torch.no_grad()
def test_an_utterance_does_not_depend_on_the_batch(whisper, speech):
    noise, lengths = speech
    together = whisper.encode(noise, lengths)
    logits = whisper.logits(whisper.decode(TOKENS.expand(4, -1), together))
    for row, length in enumerate(lengths.tolist()):
        alone = whisper.encode(noise[row : row + 1, :length], lengths[row : row + 1])
        size = alone.states.shape[1]
        assert alone.mask is None and together.mask[row].sum() == size
        torch.testing.assert_close(together.states[row, :size], alone.states[0], atol=1e-4, rtol=1e-4)
        expected = whisper.logits(whisper.decode(TOKENS, alone))[0]
        torch.testing.assert_close(logits[row], expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_selected_utterances_are_decoded_as_in_the_whole_batch(whisper, speech):
    encoded, rows = whisper.encode(*speech), torch.tensor([3, 0, 3])
    whole = whisper.decode(TOKENS.expand(4, -1), encoded)
    torch.testing.assert_close(whisper.decode(TOKENS.expand(3, -1), encoded.select(rows)), whole[rows])
    assert Encoded(encoded.states, None).select(rows).mask is None


@torch.no_grad()
@pytest.mark.parametrize("room", [None, 7, 20])
def test_a_cache_changes_nothing(whisper, speech, room):
    """Whether it grows or has memory for a fixed number of positions."""
    encoded = whisper.encode(*speech)
    tokens = TOKENS.expand(4, -1)
    whole, cache = whisper.decode(tokens, encoded), whisper.new_cache(room)
    steps = [whisper.decode(tokens[:, :4], encoded, cache)]
    steps += [whisper.decode(tokens[:, i : i + 1], encoded, cache) for i in range(4, 7)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_encoder_can_be_run_in_parts(whisper, speech):
    embedded = whisper.embed_speech(*speech)
    shallow = whisper.encode_layers(embedded, 0, 2)
    assert torch.equal(whisper.finish(shallow, 2).states, whisper.encode(*speech).states)
    assert torch.equal(whisper.encode_layers(embedded, 0, 0).states, embedded.states)


@torch.no_grad()
def test_recording_returns_the_outputs_of_layers_and_ends_with_its_context(whisper, speech):
    layers = {"second": whisper.encoder.layers[1], "first": whisper.encoder.layers[0]}
    with whisper.record(layers) as states:
        whisper.encode(*speech)
    embedded = whisper.embed_speech(*speech)
    assert torch.equal(states["first"], whisper.encode_layers(embedded, 0, 1).states)
    assert torch.equal(states["second"], whisper.encode_layers(embedded, 0, 2).states)
    whisper.encode(*speech)
    assert len(states) == 2


def test_large_v3_has_128_mels_and_100_languages(speech):
    whisper = Whisper(tiny_whisper(mels=128, vocab=51866)).eval()
    assert whisper.encode(*speech).states.shape == (4, 50, 16)


def test_unknown_paddings_are_refused():
    for pad_to in ("long", "+s", "+-1s", "30s+1s", "short"):
        with pytest.raises(ValueError, match="expected pad_to: none, "):
            Whisper(tiny_whisper(), pad_to=pad_to)
    with pytest.raises(ValueError, match="expected share_30s of 0 to 1, got 2"):
        Whisper(tiny_whisper(), share_30s=2.0)


@torch.no_grad()
def test_bfloat16_leaves_norms_and_residuals_in_float32_and_stays_near_float32(speech):
    exact, rough = (Whisper(tiny_whisper(), precision=p).eval() for p in (torch.float32, torch.bfloat16))
    assert {p.dtype for n, p in rough.model.named_parameters() if "norm" in n} == {torch.float32}
    assert rough.encoder.layers[0].fc1.weight.dtype == rough.decoder.embed_tokens.weight.dtype == torch.bfloat16
    with rough.record(dict(enumerate(rough.encoder.layers))) as residual:
        a, b = exact.encode(*speech).states, rough.encode(*speech).states
    assert {states.dtype for states in residual.values()} == {torch.float32} and b.dtype == torch.bfloat16
    assert 0 < (a - b).norm() < 0.05 * a.norm()

import numpy as np
import pytest
import torch
from conftest import openai_model, tiny_whisper

from espnet_lole.whisper.checkpoint import fingerprint, load_backbone, precision
from espnet_lole.whisper.model import Backbone

TOKENS = torch.tensor([[50258, 50259, 50359, 50363, 11, 22, 33]])


def half_minute() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, 480_000, generator=torch.Generator().manual_seed(1)) * 0.1, torch.tensor([480_000])


@torch.no_grad()
def test_equal_to_transformers_and_openai_whisper_on_30_seconds():
    model = tiny_whisper()
    speech, lengths = half_minute()
    backbone = Backbone(model).eval()
    mel, _ = backbone.features(speech, lengths)
    stock = model(input_features=mel, decoder_input_ids=TOKENS)
    encoded = backbone.encode(speech, lengths)
    logits = backbone.logits(backbone.decode(TOKENS, encoded))
    torch.testing.assert_close(encoded.states, stock.encoder_last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, stock.logits, atol=1e-3, rtol=1e-4)
    openai = openai_model(model)
    torch.testing.assert_close(encoded.states, openai.embed_audio(mel), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, openai.logits(TOKENS, encoded.states), atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_30s_window_is_the_stock_model_on_padded_audio(speech):
    model = tiny_whisper()
    backbone = Backbone(model, window="30s").eval()
    noise, lengths = speech
    padded = np.zeros(480_000, dtype=np.float32)
    padded[: lengths[1]] = noise[1, : lengths[1]]
    mel, _ = backbone.features(torch.from_numpy(padded)[None], torch.tensor([480_000]))
    states = backbone.encode(noise, lengths).states[1:2]
    torch.testing.assert_close(states, model.model.encoder(mel).last_hidden_state, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("seconds", [0.5, 1.25])
def test_silence_is_added_behind_each_utterance(speech, seconds):
    backbone, plain = Backbone(tiny_whisper(), window=f"short+{seconds}s").eval(), Backbone(tiny_whisper()).eval()
    noise, lengths = speech
    states = backbone.encode(noise, lengths).states
    for row, length in enumerate(lengths.tolist()):
        longer = torch.zeros(1, length + int(seconds * 16_000))
        longer[0, :length] = noise[row, :length]
        assert longer.shape[1] == backbone.input_samples(length)
        alone = plain.encode(longer, torch.tensor([longer.shape[1]])).states
        torch.testing.assert_close(states[row : row + 1, : alone.shape[1]], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_silence_ends_at_30_seconds():
    speech, _ = half_minute()
    backbone, whole = Backbone(tiny_whisper(), "short+2s").eval(), Backbone(tiny_whisper(), "30s").eval()
    lengths = torch.tensor([29 * 16_000])
    assert torch.equal(backbone.encode(speech, lengths).states, whole.encode(speech, lengths).states)


@torch.no_grad()
def test_independent_of_the_batch(backbone, speech):
    noise, lengths = speech
    together = backbone.encode(noise, lengths)
    logits = backbone.logits(backbone.decode(TOKENS.expand(4, -1), together))
    for row, length in enumerate(lengths.tolist()):
        alone = backbone.encode(noise[row : row + 1, :length], lengths[row : row + 1])
        size = alone.states.shape[1]
        torch.testing.assert_close(together.states[row, :size], alone.states[0], atol=1e-4, rtol=1e-4)
        expected = backbone.logits(backbone.decode(TOKENS, alone))[0]
        torch.testing.assert_close(logits[row], expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_cache_changes_nothing(backbone, speech):
    encoded = backbone.encode(*speech)
    tokens = TOKENS.expand(4, -1)
    whole, cache = backbone.decode(tokens, encoded), backbone.new_cache()
    steps = [backbone.decode(tokens[:, :4], encoded, cache)]
    steps += [backbone.decode(tokens[:, i : i + 1], encoded, cache) for i in range(4, 7)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_large_v3_has_128_mels_and_100_languages(speech):
    backbone = Backbone(tiny_whisper(mels=128, vocab=51866)).eval()
    assert backbone.encode(*speech).states.shape == (4, 50, 16)


def test_load_from_a_folder(tmp_path, speech):
    tiny_whisper().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert fingerprint(backbone) == fingerprint(Backbone(tiny_whisper()))
    assert fingerprint(backbone) != fingerprint(Backbone(tiny_whisper(seed=1)))
    assert {fingerprint(load_backbone(str(tmp_path), precision_name=p)) for p in ("bfloat16", "float16")} == {
        fingerprint(backbone)
    }


def test_weights_keep_the_window_that_they_were_trained_with(tmp_path):
    tiny_whisper().save_pretrained(tmp_path / "stock")
    Backbone(tiny_whisper(), "short").model.save_pretrained(tmp_path / "short")
    assert [load_backbone(str(tmp_path / name)).window for name in ("stock", "short")] == ["30s", "short"]
    assert load_backbone(str(tmp_path / "short"), "30s").window == "30s"


def test_errors():
    with pytest.raises(FileNotFoundError, match="expected backbone to be a folder"):
        load_backbone("nowhere/at-all")
    for window in ("long", "short+s", "short+-1s", "30s+1s"):
        with pytest.raises(ValueError, match="expected window"):
            Backbone(tiny_whisper(), window=window)


@torch.no_grad()
def test_bfloat16_keeps_norms_and_residuals_in_float32_and_stays_near_float32(speech):
    exact, rough = (Backbone(tiny_whisper(), precision=p).eval() for p in (torch.float32, torch.bfloat16))
    assert {p.dtype for n, p in rough.model.named_parameters() if "norm" in n} == {torch.float32}
    assert rough.encoder.layers[0].fc1.weight.dtype == rough.decoder.embed_tokens.weight.dtype == torch.bfloat16
    with rough.recorded(rough.encoder.layers) as residual:
        a, b = exact.encode(*speech).states, rough.encode(*speech).states
    assert {states.dtype for states in residual} == {torch.float32} and b.dtype == torch.bfloat16
    assert 0 < (a - b).norm() < 0.05 * a.norm()


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="expected precision"):
        precision("float17")
    assert precision("auto") in (torch.float32, torch.bfloat16)

"""Full fine-tuning against the loss of the stock model."""

import pytest
import torch
from conftest import make_batch, tiny_whisper
from espnet_models import CODES, full_model
from transformers import WhisperForConditionalGeneration

from espnet_lole.espnet_model import ESPnetFullModel
from espnet_lole.whisper.model import Whisper


def test_loss_is_that_of_stock_whisper(speech):
    """On an utterance of 30 s, where the stock model has the same input."""
    model = full_model()
    half_minute = torch.nn.functional.pad(speech[0], (0, 480_000 - 16_000)), torch.full((4,), 480_000)
    batch = make_batch(model, [0], half_minute)
    loss, stats, weight = model(**batch)
    ids = torch.tensor([[*model.tokenizer.prompt("de"), *batch["text"][0].tolist(), model.tokenizer.eot]])
    mel, _ = model.whisper.features(batch["speech"], batch["speech_lengths"])
    labels = ids[:, 1:].clone()
    labels[:, 1:3] = -100
    stock = WhisperForConditionalGeneration.forward(
        model.whisper.model, mel, decoder_input_ids=ids[:, :-1], labels=labels
    )
    torch.testing.assert_close(loss[0], stock.loss, atol=1e-3, rtol=1e-4)
    assert weight == 1 and stats["lid_acc"] in (0, 1)


def test_all_but_the_encoders_positions_train(speech):
    model = full_model()
    loss, _, _ = model(**make_batch(model, [0, 1, 2, 3], speech))
    loss.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None}
    assert (
        still
        == {"whisper.model.model.encoder.embed_positions.weight"}
        == set(dict(model.named_parameters())) - set(model.trained_names())
    )


def test_low_precision_is_refused():
    with pytest.raises(ValueError, match="expected precision: float32 for full fine-tuning, got torch.bfloat16"):
        ESPnetFullModel(Whisper(tiny_whisper(), precision=torch.bfloat16), CODES)


def test_a_finished_training_leaves_a_stock_whisper(tmp_path):
    model = full_model()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * p.requires_grad)
    model.save_trained(tmp_path, CODES, "tiny")
    stock = WhisperForConditionalGeneration.from_pretrained(tmp_path / "whisper").state_dict()
    assert all(torch.equal(stock[name], value) for name, value in model.whisper.model.state_dict().items())

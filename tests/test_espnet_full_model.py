import pytest
import torch
import yaml
from conftest import make_batch, tiny_whisper
from transformers import WhisperForConditionalGeneration

from espnet_lole.bin.lole_export import main as export
from espnet_lole.espnet_full_model import ESPnetFullModel
from espnet_lole.tasks.lole import LoLETask
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

CODES = ("de", "en", "fr", "zh")


def make_model(seed=0) -> ESPnetFullModel:
    return ESPnetFullModel(Backbone(tiny_whisper(seed)).eval().requires_grad_(False), CODES, WhisperTokens(51865))


def test_loss_is_that_of_stock_whisper(speech):
    """On an utterance of 30 s, where the stock model has the same input."""
    model = make_model()
    batch = make_batch(
        model, [0], (torch.nn.functional.pad(speech[0], (0, 480_000 - 16_000)), torch.full((4,), 480_000))
    )
    loss, stats, weight = model(**batch)
    ids = torch.tensor([[*model.tokens.prompt("de"), *batch["text"][0].tolist(), model.tokens.end]])
    mel, _ = model.backbone.features(batch["speech"], batch["speech_lengths"])
    labels = ids[:, 1:].clone()
    labels[:, 1:3] = -100
    stock = WhisperForConditionalGeneration.forward(
        model.backbone.model, mel, decoder_input_ids=ids[:, :-1], labels=labels
    )
    torch.testing.assert_close(loss, stock.loss, atol=1e-3, rtol=1e-4)
    assert weight == 1 and stats["lid_acc"] in (0, 1)


def test_all_but_the_encoders_positions_train_and_are_saved(speech):
    model = make_model()
    loss, _, _ = model(**make_batch(model, [0, 1, 2, 3], speech))
    loss.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None}
    assert still == {"backbone.model.model.encoder.embed_positions.weight"}
    assert set(model.state_dict()) - {"backbone_fingerprint"} == {n for n, _ in model.named_parameters()} - still


def test_low_precision_is_refused():
    with pytest.raises(ValueError, match="expected precision: float32 for full fine-tuning"):
        ESPnetFullModel(Backbone(tiny_whisper(), precision=torch.bfloat16), CODES, WhisperTokens(51865))


def test_export_is_a_stock_whisper(tmp_path):
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    options = [
        "--system",
        "full",
        "--backbone",
        str(tmp_path / "tiny"),
        "--langs",
        *CODES,
        "--output_dir",
        str(tmp_path),
    ]
    args = LoLETask.get_parser().parse_args([*options, "--optim", "adamw"])
    model = LoLETask.build_model(args)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * p.requires_grad)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), tmp_path / "trained.pth")
    export(["--asr_model_file", str(tmp_path / "trained.pth"), "--merged", str(tmp_path / "merged")])
    stock = WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged").state_dict()
    for name, value in model.backbone.model.state_dict().items():
        torch.testing.assert_close(stock[name], value, atol=0, rtol=0)
    with pytest.raises(SystemExit, match="expected --merged for a checkpoint of system full"):
        export(["--asr_model_file", str(tmp_path / "trained.pth"), "--output_dir", str(tmp_path / "adapters")])

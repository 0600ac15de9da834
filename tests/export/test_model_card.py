"""The model card is complete, and hubs read its header."""

from huggingface_hub import ModelCard

from espnet_lole.export.metadata import History, ModelMetadata
from espnet_lole.export.model_card import model_card


def test_the_card_needs_no_edit(tmp_path):
    rates = {"aware": {"de": 7.25, "zh": 5.0}, "agnostic": {"de": 8.5}}
    history = History(5, {"acc": 0.9}, {"de": 1.5, "zh": 2.0}, rates)
    sizes = ({"de": 64, "zh": 64}, {"de": 10_000, "zh": 10_000})
    metadata = ModelMetadata("mole", "openai/whisper-medium", ("de", "zh"), *sizes, shared_layers=20, history=history)
    (tmp_path / "README.md").write_text(model_card(metadata, "my system", "mit", "Common Voice"))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.language == ["de", "zh"] and card.data.license == "mit"
    assert card.data.base_model == "openai/whisper-medium" and card.data.pipeline_tag == "automatic-speech-recognition"
    for part in (
        "| de | 7.2 | 8.5 |",
        "| zh | 5.0 |  |",
        "Common Voice",
        "| de | 1.50 |",
        "layers 1 to 20",
        "5 epochs",
    ):
        assert part in card.text

import pytest
import torch
from conftest import tiny_whisper
from espnet2.asr.specaug.specaug import SpecAug

from espnet_lole.train.specaug import Augment
from espnet_lole.whisper.model import Whisper


@pytest.mark.parametrize("pad_to", ["none", "30s"])
def test_specaugment_changes_speech_in_training_alone(pad_to, speech, monkeypatch):
    whisper = Whisper(tiny_whisper(), pad_to).train()
    monkeypatch.setattr(whisper, "embed_mel", lambda mel, frames: mel)
    plain = whisper.embed_speech(*speech)
    whisper.augment = Augment(SpecAug(time_mask_width_ratio_range=[0.2, 0.3], freq_mask_width_range=[5, 20]))
    torch.manual_seed(0)
    changed = whisper.embed_speech(*speech) != plain
    for row, samples in enumerate(speech[1].tolist()):
        assert changed[row, :, : samples // 160].float().mean() > 0.1
        assert not changed[row, :, samples // 160 :].any()
    assert torch.equal(whisper.eval().embed_speech(*speech), plain)

import pytest
import torch
from whisper.audio import log_mel_spectrogram

from espnet_lole.whisper.features import LogMel


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("samples", [480_000, 16_000, 9_001, 400])
def test_features_are_those_of_openai_whisper(mels, samples):
    speech = torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.1
    features, frames = LogMel(mels)(speech[None], torch.tensor([samples]))
    oracle = log_mel_spectrogram(speech, mels)
    assert frames.item() == oracle.shape[1]
    torch.testing.assert_close(features[0], oracle, atol=2e-5, rtol=1e-4)


def test_features_do_not_depend_on_the_batch(speech):
    features = LogMel()
    noise, lengths = speech
    batch, frames = features(noise, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, _ = features(noise[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(batch[row, :, : frames[row]], alone[0], atol=1e-6, rtol=0)
        assert (batch[row, :, frames[row] :] == 0).all()


@pytest.mark.parametrize("samples", [0, 399, 480_001])
def test_refuses_lengths_that_whisper_cannot_take(samples):
    with pytest.raises(ValueError, match=f"got one of {samples}"):
        LogMel()(torch.zeros(1, max(samples, 1)), torch.tensor([samples]))

import pytest
import soundfile
import torch
from analysis import compare_outputs, gradient_norms, layer_cosines, pooled_states, project, separability
from conftest import random_experts, tiny_whisper

from espnet_lole.espnet_student_model import STUDENT, DistillConfig, ESPnetStudentModel
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

CODES = ("de", "en")


@pytest.fixture
def data(tmp_path, speech):
    """A formatted set of four utterances of two languages."""
    rows = [(f"u{i}", CODES[i % 2], int(n)) for i, n in enumerate(speech[1])]
    for i, (utt, _, samples) in enumerate(rows):
        soundfile.write(tmp_path / f"{utt}.wav", speech[0][i, :samples].numpy(), 16000)
    tables = {
        "wav.scp": [f"{utt} {tmp_path / utt}.wav" for utt, _, _ in rows],
        "utt2num_samples": [f"{utt} {samples}" for utt, _, samples in rows],
        "utt2lang": [f"{utt} {lang}" for utt, lang, _ in rows],
        "text": [f"{utt} two" for utt, _, _ in rows],
    }
    for name, lines in tables.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    return tmp_path


@pytest.fixture
def models() -> dict[str, ESPnetStudentModel]:
    """A student and its teachers, with each distillation."""
    backbone = Backbone(tiny_whisper()).eval().requires_grad_(False)
    experts = random_experts(ExpertBank(backbone.model, CODES, ExpertConfig(rank=2, alpha=4.0)))
    student = random_experts(ExpertBank(backbone.model, [STUDENT], ExpertConfig(rank=2, alpha=4.0)), seed=1)
    tokens = WhisperTokens(51865)
    return {
        kd: ESPnetStudentModel(backbone, CODES, experts, student, tokens, DistillConfig(kd=kd), 1).eval()
        for kd in ("none", "logits", "layers", "both")
    }


def test_a_student_equal_to_its_teachers(data, models):
    model = models["layers"]
    for name, layer in model.student.layers.items():
        theirs = model.teacher.layers[name]
        theirs.lora_A.data[:], theirs.lora_B.data[:] = layer.lora_A.data[0], layer.lora_B.data[0]
    cosines = layer_cosines(model, data)
    assert list(cosines) == ["enc1", "enc2", "enc3", "dec1", "dec2"]
    assert all(value == pytest.approx(1.0, abs=1e-5) for value in cosines.values())
    assert compare_outputs(model, data)["agreement"] == 100.0
    norms = gradient_norms(models, data)
    assert norms["none"] > 0.01 and max(norms["logits"], norms["layers"]) < 1e-3 * norms["none"]


def test_other_students_differ(data, models):
    assert all(value < 0.9999 for value in layer_cosines(models["layers"], data).values())
    for layer in models["layers"].student.layers.values():
        layer.lora_B.data *= 20
    compared = compare_outputs(models["layers"], data)
    assert compared["agreement"] < 100.0 and 0 < compared["entropy"] < torch.tensor(51865.0).log()
    norms = gradient_norms(models, data)
    assert norms["both"] <= norms["logits"] + norms["layers"] + 1e-6


def test_pooled_states_do_not_depend_on_padding(data, models):
    backbone = models["none"].backbone
    states, langs = pooled_states(backbone, models["none"].student, [data])
    assert states.shape == (4, 16) and sorted(langs) == ["de", "de", "en", "en"]
    samples = torch.from_numpy(soundfile.read(data / "u3.wav", dtype="float32")[0])
    with models["none"].student.routed(torch.zeros(1, dtype=torch.long)):
        alone = backbone.encode(samples[None], torch.tensor([len(samples)])).states.mean(1)[0]
    torch.testing.assert_close(states[-1], alone, atol=1e-4, rtol=1e-4)  # the shortest comes last


def test_projection_keeps_the_largest_spread():
    states = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5.0, *[0.1] * 6])
    largest = torch.linalg.eigvalsh(states.T.cov()).flip(0)[:2]
    torch.testing.assert_close(project(states).var(0), largest, rtol=1e-3, atol=0.0)


def test_separability():
    states = torch.tensor([[0.0], [1.0], [10.0], [11.0], [0.4], [10.5]])
    assert separability(states, ["a", "a", "b", "b", "a", "b"]) == 100.0
    assert separability(states, ["a", "a", "b", "b", "b", "a"]) == pytest.approx(100 * 4 / 6)

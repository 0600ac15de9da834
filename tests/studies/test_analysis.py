import pytest
import soundfile
import torch
from analysis import (
    compare_outputs,
    energy_by_layer,
    gradient_norms,
    layer_cosines,
    pooled_states,
    project,
    separability,
)
from conftest import random_experts, tiny_whisper

from espnet_lole.espnet_model import ESPnetStudentModel
from espnet_lole.lole.experts import share_weights
from espnet_lole.lole.kd import STUDENT, KDConfig, LoRAKD
from espnet_lole.whisper.model import Whisper

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
    """A student and its teachers, with each kind of distillation."""
    whisper = Whisper(tiny_whisper()).eval().requires_grad_(False)
    teacher = random_experts(CODES, rank=2, alpha=4.0, whisper=share_weights(whisper))
    student = random_experts([STUDENT], rank=2, alpha=4.0, seed=1, whisper=whisper)
    return {
        kd: ESPnetStudentModel(LoRAKD(student, teacher, KDConfig(kd=kd)), CODES).eval()
        for kd in ("none", "logits", "layers", "both")
    }


def test_a_student_equal_to_its_teachers(data, models):
    model = models["layers"]
    teachers = model.kd.teacher.layers
    with torch.no_grad():
        for name, layer in model.kd.student.layers.items():
            for lang in CODES:
                teachers[name].lora_A[lang].copy_(layer.lora_A[STUDENT])
                teachers[name].lora_B[lang].copy_(layer.lora_B[STUDENT])
    cosines = layer_cosines(model, data)
    assert list(cosines) == ["enc1", "enc2", "enc3", "dec1", "dec2"]
    assert all(value == pytest.approx(1.0, abs=1e-5) for value in cosines.values())
    assert compare_outputs(model, data)["agreement"] == 100.0
    norms = gradient_norms(models, data)
    assert norms["none"] > 0.01 and max(norms["logits"], norms["layers"]) < 1e-3 * norms["none"]


def test_other_students_differ(data, models):
    assert all(value < 0.9999 for value in layer_cosines(models["layers"], data).values())
    for layer in models["layers"].kd.student.layers.values():
        layer.lora_B[STUDENT].data *= 20
    compared = compare_outputs(models["layers"], data)
    assert compared["agreement"] < 100.0 and 0 < compared["entropy"] < torch.tensor(51865.0).log()
    norms = gradient_norms(models, data)
    assert norms["both"] <= norms["logits"] + norms["layers"] + 1e-6


def test_pooled_states_do_not_depend_on_padding(data, models):
    whisper, student = models["none"].whisper, models["none"].kd.student
    states, langs = pooled_states(whisper, student, [data])
    assert states.shape == (4, 16) and sorted(langs) == ["de", "de", "en", "en"]
    samples = torch.from_numpy(soundfile.read(data / "u3.wav", dtype="float32")[0])
    with student.activate([0]):
        alone = whisper.encode(samples[None], torch.tensor([len(samples)])).states.mean(1)[0]
    torch.testing.assert_close(states[-1], alone, atol=1e-4, rtol=1e-4)  # the shortest comes last


def test_projection_keeps_the_largest_spread():
    states = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5.0, *[0.1] * 6])
    largest = torch.linalg.eigvalsh(states.T.cov()).flip(0)[:2]
    torch.testing.assert_close(project(states).var(0), largest, rtol=1e-3, atol=0.0)


def test_separability():
    states = torch.tensor([[0.0], [1.0], [10.0], [11.0], [0.4], [10.5]])
    assert separability(states, ["a", "a", "b", "b", "a", "b"]) == 100.0
    assert separability(states, ["a", "a", "b", "b", "b", "a"]) == pytest.approx(100 * 4 / 6)


def test_energy_of_a_layer_is_that_of_the_average_of_its_linears():
    experts = random_experts(("de", "en"), rank=3, alpha=6.0, targets=("fc1", "k_proj"))
    shares = energy_by_layer(experts)
    assert list(shares) == ["enc1", "enc2", "enc3", "dec1", "dec2"]
    expected = []
    for linear in ("fc1", "self_attn.k_proj"):
        layer = experts.layers[f"model.encoder.layers.1.{linear}"]
        s = torch.linalg.svdvals(sum(layer.lora_B[lang] @ layer.lora_A[lang] for lang in ("de", "en")).detach())[:6]
        expected.append(s.square().cumsum(0) / s.square().sum())
    torch.testing.assert_close(shares["enc2"], torch.stack(expected).mean(0), atol=1e-4, rtol=1e-4)

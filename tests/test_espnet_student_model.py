"""The student's losses: cross-entropy against torch, and distillation, zero for a student equal to its teacher."""

import pytest
import torch
from conftest import LANGS, TEXTS, make_batch
from espnet_models import student_model, trained
from torch.nn import functional as F

from espnet_lole.lole.adapters import Adapter
from espnet_lole.lole.kd import STUDENT, js_divergence


def test_loss_is_the_weighted_sum_of_its_parts(speech):
    model = student_model(layer_weight=2.0, logit_weight=3.0)
    loss, stats, weight = model(**make_batch(model, [0, 1, 2, 3], speech))
    torch.testing.assert_close(loss, stats["loss_asr"] + 2 * stats["loss_layers"] + 3 * stats["loss_logits"])
    torch.testing.assert_close(stats["loss"], loss.detach())
    cosines = [value for name, value in stats.items() if name.startswith("cos_")]
    assert len(cosines) == 5 and weight == 4
    torch.testing.assert_close(stats["loss_layers"], 1 - torch.stack(cosines).mean(0))


def test_cross_entropy_counts_language_text_and_end(speech):
    model = student_model(teacher=False, kd="none")
    loss, stats, _ = model(**make_batch(model, [0, 1, 2, 3], speech))
    losses, correct, languages = [], [], []
    codes = torch.tensor([model.tokenizer.language(lang) for lang in model.languages])
    for i, lang in enumerate(LANGS):
        ids = torch.tensor(
            [*model.tokenizer.prompt(lang), *model.tokenizer.encode(TEXTS[i], lang), model.tokenizer.eot]
        )
        encoded = model.whisper.encode(speech[0][i : i + 1, : speech[1][i]], speech[1][i : i + 1])
        logits = model.whisper.logits(model.whisper.decode(ids[None, :-1], encoded))[0]
        every = F.cross_entropy(logits, ids[1:], reduction="none")
        losses += [every[:1], every[3:]]  # not the other two tokens of the prompt
        correct.append((logits[3:].argmax(1) == ids[4:]).float())
        languages.append(float(codes[logits[0, codes].argmax()] == ids[1]))
    torch.testing.assert_close(loss[0], torch.cat(losses).mean(), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(stats["acc"][0], torch.cat(correct).mean())
    assert stats["lid_acc"] == pytest.approx(sum(languages) / 4)


def test_the_teacher_of_an_utterance_is_the_expert_of_its_language(speech):
    """A student that equals one language's expert has no loss of distillation on it, and one on another language."""
    model = student_model()
    for name, layer in model.kd.student.layers.items():
        expert = model.kd.teacher.layers[name]
        layer.lora_A[STUDENT].data = expert.lora_A["de"].data
        layer.lora_B[STUDENT].data = expert.lora_B["de"].data
    stats = model(**make_batch(model, [0, 2], speech))[1]
    assert stats["loss_layers"] < 1e-6 and stats["loss_logits"].abs() < 1e-6
    stats = model(**make_batch(model, [1], speech))[1]
    assert stats["loss_layers"] > 1e-3 and stats["loss_logits"] > 1e-3


def test_a_teacher_hears_no_more_silence_than_in_its_training_whatever_the_student_hears(speech):
    """Without silence the teacher's states are compared with the student's of the same frames, of speech alone."""
    model = student_model()
    model.whisper.share_30s = 1.0
    inputs = []
    run = model.kd.run_teacher
    model.kd.run_teacher = lambda embedded, *rest: (inputs.append(embedded), run(embedded, *rest))[1]
    batch = make_batch(model, [0, 1, 2, 3], speech)
    stats = model.train()(**batch)[1]
    plain = model.whisper.embed_speech(batch["speech"], batch["speech_lengths"])
    assert inputs[0].states.shape == plain.states.shape and torch.equal(inputs[0].mask, plain.mask)
    assert stats["loss_layers"].isfinite() and stats["loss_layers"] > 0


def test_divergence_is_a_mean_over_text_and_end_of_unpadded_texts(speech):
    """The oracle: an utterance at a time, without the language, which the teacher does not predict."""
    model = student_model(kd="logits", temperature=2.0)
    stats = model(**make_batch(model, [0, 1, 2, 3], speech))[1]
    divergences = []
    for i, lang in enumerate(LANGS):
        ids = torch.tensor([[*model.tokenizer.prompt(lang), *model.tokenizer.encode(TEXTS[i], lang)]])
        logits = []
        for experts, index in ((model.kd.student, 0), (model.kd.teacher, model.languages.index(lang))):
            with torch.no_grad(), experts.activate([index]):
                encoded = experts.whisper.encode(speech[0][i : i + 1, : speech[1][i]], speech[1][i : i + 1])
                logits.append(experts.whisper.logits(experts.whisper.decode(ids, encoded))[0, 3:])
        divergences.append(js_divergence(*logits, 2.0))
    torch.testing.assert_close(stats["loss_logits"][0], torch.cat(divergences).mean(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kd", ["none", "logits", "layers", "both"])
def test_only_the_student_trains(kd, speech):
    model = student_model(kd=kd)
    loss, stats, _ = model(**make_batch(model, [0, 1, 2, 3], speech))
    loss.backward()
    assert ("loss_layers" in stats, "loss_logits" in stats) == (kd in ("layers", "both"), kd in ("logits", "both"))
    student = set(map(id, model.kd.student.parameters_of_experts()[STUDENT]))
    assert {id(p) for p in model.parameters() if p.grad is not None} == student
    assert set(map(id, trained(model).values())) == student


def test_padding_and_neighbours_do_not_count(speech):
    """The mean of a batch of two is that of two batches of one, weighted by their frames."""
    model = student_model()
    alone = [model(**make_batch(model, [i], speech))[1]["cos_enc3"][0] for i in (0, 3)]
    both = model(**make_batch(model, [0, 3], speech))[1]["cos_enc3"][0]
    frames = (speech[1][[0, 3]] // 160 + 1) // 2
    torch.testing.assert_close((torch.stack(alone) * frames).sum() / frames.sum(), both, atol=1e-4, rtol=1e-4)


def test_the_schedule_weighs_distillation(speech):
    model = student_model(layer_weight=2.0, final_factor=0.0)
    batch = make_batch(model, [0, 1, 2, 3], speech)
    for epoch, schedule in ((1, 1.0), (4, 0.25), (5, 0.0)):
        model.start_epoch(epoch, 5)
        loss, stats, _ = model(**batch)
        distillation = 2 * stats["loss_layers"] + stats["loss_logits"]
        torch.testing.assert_close(loss, stats["loss_asr"] + schedule * distillation)


def test_a_finished_training_leaves_one_adapter(tmp_path):
    model = student_model()
    model.save_trained(tmp_path, model.languages, "tiny")
    adapter = Adapter.read(tmp_path / "adapters" / "student")
    for name, layer in model.kd.student.layers.items():
        assert torch.equal(adapter.factors[name]["A"], layer.lora_A[STUDENT])

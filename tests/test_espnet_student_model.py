import pytest
import torch
from conftest import LANGS, TEXTS, make_batch, random_experts, tiny_whisper
from transformers import WhisperForConditionalGeneration

from espnet_lole.espnet_student_model import STUDENT, DistillConfig, ESPnetStudentModel
from espnet_lole.export.whisper import save_merged
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import PromptTranscriber
from espnet_lole.lole.adapters import save_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.tasks.lole import LoLETask
from espnet_lole.whisper.checkpoint import load_backbone
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

CODES = ("de", "en", "fr", "zh")


def make_model(with_experts=True, rank=4, epochs=5, **distill) -> ESPnetStudentModel:
    backbone = Backbone(tiny_whisper()).eval().requires_grad_(False)
    experts = (
        random_experts(ExpertBank(backbone.model, CODES, ExpertConfig(rank=4, alpha=8.0))) if with_experts else None
    )
    student = ExpertBank(backbone.model, [STUDENT], ExpertConfig(rank=rank, alpha=2.0 * rank))
    return ESPnetStudentModel(backbone, CODES, experts, student, WhisperTokens(51865), DistillConfig(**distill), epochs)


def test_loss_is_its_parts(speech):
    model = make_model(layer_weight=2.0, logit_weight=3.0)
    loss, stats, weight = model(**make_batch(model, [0, 1, 2, 3], speech))
    torch.testing.assert_close(loss, stats["loss_asr"] + 2 * stats["loss_layers"] + 3 * stats["loss_logits"])
    cosines = [value for name, value in stats.items() if name.startswith("cos_")]
    assert len(cosines) == 5 and weight == 4
    torch.testing.assert_close(stats["loss_layers"], 1 - torch.stack(cosines).mean())


def test_cross_entropy_counts_language_text_and_end(speech):
    model = make_model(with_experts=False, kd="none")
    loss, _, _ = model(**make_batch(model, [0, 1, 2, 3], speech))
    costs = []
    for i in range(4):
        ids = torch.tensor([*model.tokens.prompt(LANGS[i]), *model.tokens.encode(TEXTS[i], LANGS[i]), model.tokens.end])
        encoded = model.backbone.encode(speech[0][i : i + 1, : speech[1][i]], speech[1][i : i + 1])
        scores = model.backbone.logits(model.backbone.decode(ids[None, :-1], encoded))[0]
        every = torch.nn.functional.cross_entropy(scores, ids[1:], reduction="none")
        costs += [every[:1], every[3:]]
    torch.testing.assert_close(loss, torch.cat(costs).mean(), atol=1e-3, rtol=1e-4)


def test_a_student_equal_to_its_teacher_costs_nothing(speech):
    """One language, whose expert the student copies."""
    model = make_model()
    for name, layer in model.student.layers.items():
        layer.lora_A.data[0] = model.teacher.layers[name].lora_A[0]
        layer.lora_B.data[0] = model.teacher.layers[name].lora_B[0]
    _, stats, _ = model(**make_batch(model, [0, 2], speech))
    assert stats["loss_layers"] < 1e-10 and stats["loss_logits"].abs() < 1e-6


@pytest.mark.parametrize("kd", ["none", "logits", "layers", "both"])
def test_only_the_student_trains_and_is_saved(kd, speech):
    model = make_model(kd=kd)
    loss, stats, _ = model(**make_batch(model, [0, 1, 2, 3], speech))
    loss.backward()
    assert ("loss_layers" in stats, "loss_logits" in stats) == (kd in ("layers", "both"), kd in ("logits", "both"))
    assert all(p.grad is None for name, p in model.named_parameters() if ".base." in name)
    assert sum(p.grad is not None for p in model.parameters()) == 2 * len(model.student.layers)
    names = set(model.state_dict()) - {"backbone_fingerprint"}
    assert names == {n for n, _ in make_model(with_experts=False, kd="none").named_parameters() if ".lora_" in n}


def test_padding_and_neighbours_do_not_count(speech):
    """The losses of two batches of one are those of a batch of two, weighted by their counts."""
    model = make_model()
    alone = [model(**make_batch(model, [i], speech))[1]["cos_enc3"] for i in (0, 3)]
    both = model(**make_batch(model, [0, 3], speech))[1]["cos_enc3"]
    frames = (speech[1][[0, 3]] // 160 + 1) // 2
    torch.testing.assert_close((torch.stack(alone) * frames).sum() / frames.sum(), both, atol=1e-4, rtol=1e-4)


def test_weights_follow_their_schedule(speech):
    model = make_model(final_factor=0.0)
    batch = make_batch(model, [0, 1, 2, 3], speech)
    first = model(**batch)[1]
    model.start_epoch(3)
    third = model(**batch)[1]
    model.start_epoch(5)
    last = model(**batch)[1]
    torch.testing.assert_close(third["loss"], (first["loss"] + last["loss"]) / 2)
    torch.testing.assert_close(last["loss"], last["loss_asr"])


def test_student_finds_languages_and_its_merged_checkpoint_is_a_stock_whisper(tmp_path, speech):
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    model = make_model(with_experts=False, kd="none")
    random_experts(model.student)
    save_expert(model.student, STUDENT, tmp_path / STUDENT, "tiny")
    save_merged(load_backbone(str(tmp_path / "tiny"), "short").model, tmp_path / STUDENT, tmp_path / "merged", CODES)
    rows = [row[:length] for row, length in zip(*speech, strict=True)]
    search = SearchConfig(maxlenratio=0.2)
    student = PromptTranscriber(model.backbone, model.tokens, model.student, CODES, search)
    merged = load_backbone(str(tmp_path / "merged"))
    plain = PromptTranscriber(merged, model.tokens, None, CODES, search)
    for ours, theirs in zip(student(rows, None), plain(rows, None), strict=True):
        assert (ours.hypothesis.tokens, ours.lang) == (theirs.hypothesis.tokens, theirs.lang)
        assert ours.lang in CODES and ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)
    padded = torch.nn.functional.pad(speech[0][:1], (0, 480_000 - 16_000))
    mel, _ = merged.features(padded, torch.tensor([480_000]))
    whole = PromptTranscriber(
        Backbone(merged.model, "30s").eval(), model.tokens, None, CODES, SearchConfig(maxlenratio=0.01)
    )
    (ours,) = whole(rows[:1], ["de"])
    stock = WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([model.tokens.prompt("de")])
    for token in ours.hypothesis.tokens:
        best = stock(input_features=mel, decoder_input_ids=ids).logits[0, -1, : model.tokens.end + 1].argmax()
        assert best == token
        ids = torch.cat([ids, best.view(1, 1)], dim=1)


def test_languages_to_find_are_needed(speech):
    model = make_model(with_experts=False, kd="none")
    with pytest.raises(ValueError, match="expected the languages that can be found"):
        PromptTranscriber(model.backbone, model.tokens, None, [], SearchConfig())([speech[0][0]], None)


def test_task_builds_it(tmp_path):
    model = make_model()
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    for lang in CODES:
        save_expert(model.teacher, lang, tmp_path / "adapters" / lang, "tiny")
    options = ["--system", "student", "--backbone", str(tmp_path / "tiny"), "--langs", *CODES, "--output_dir", "x"]
    options += ["--expert_conf", "rank=6", "--optim", "adamw", "--optim_conf", "lr=0.01"]
    parse = LoLETask.get_parser().parse_args
    built = LoLETask.build_model(parse([*options, "--experts", str(tmp_path / "adapters")]))
    assert built.teacher is not None and built.student.layers["model.encoder.layers.0.fc1"].lora_B.abs().sum() > 0
    plain = LoLETask.build_model(parse([*options, "--student_start", "random", "--distill_conf", "kd=none"]))
    assert plain.teacher is None
    plain.load_state_dict(built.state_dict())
    with pytest.raises(ValueError, match="expected --experts"):
        LoLETask.build_model(parse(options))


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="expected kd of"):
        DistillConfig(kd="some")
    with pytest.raises(ValueError, match="expected the experts for distill_conf kd: both"):
        make_model(with_experts=False)
    with pytest.raises(ValueError, match="expected layers from 1 to 3 in encoder_layers of distill_conf, got \\[4\\]"):
        make_model(encoder_layers=(1, 4))

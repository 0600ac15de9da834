"""The one builder: what each system is built from, and what does not fit together."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import random_experts, run_frontend, tiny_whisper

from espnet_lole.lole.adapters import save_adapter
from espnet_lole.lole.experts import ExpertConfig, LoRAExperts
from espnet_lole.lole.kd import STUDENT, LoRAKD
from espnet_lole.lole.mole_weights import MOLE_WEIGHTS, save_trained, trained_state
from espnet_lole.lole.system import SystemConfig, build_system
from espnet_lole.whisper.checkpoint import empty_whisper
from espnet_lole.whisper.model import Whisper

LANGS = ("de", "en", "fr", "zh")
LAYER = "model.encoder.layers.0.fc1"


def build(recipe: Path, system: str, **options) -> torch.nn.Module:
    """Build a system on the recipe's backbone."""
    return build_system(
        SystemConfig.parse({"system": system, "backbone": str(recipe / "tiny"), "langs": LANGS} | options)
    )


def prepared(recipe: Path) -> dict[str, str]:
    return {"experts": str(recipe / "exp/experts/adapters"), "pad_to": "none"}


def mole_options(recipe: Path) -> dict:
    return prepared(recipe) | {"fusion_conf": {"shared_layers": 2}, "classifier_conf": {"hidden": 8}}


def same_factors(experts: LoRAExperts, others: LoRAExperts) -> bool:
    state, other = experts.state_dict(), others.state_dict()
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


def test_new_experts_depend_on_the_seed(recipe):
    experts = build(recipe, "experts", expert_conf={"rank": 3}, seed=1)
    assert same_factors(experts, LoRAExperts(Whisper(tiny_whisper(), "30s"), LANGS, ExpertConfig(rank=3), seed=1))
    assert not same_factors(experts, build(recipe, "experts", expert_conf={"rank": 3}))
    assert experts.whisper.pad_to == "30s"  # as stock weights were trained
    assert build(recipe, "experts", pad_to="+1s", precision="bfloat16").whisper.pad_to == "+1s"


def test_trained_experts_are_loaded(recipe):
    assert same_factors(build(recipe, "experts", adapters=str(recipe / "exp/experts/adapters")), random_experts(LANGS))


def test_experts_start_from_an_adapter(recipe):
    """Every language from the same one, whatever its scale."""
    start = recipe / "exp/student/adapters/student"
    experts = build(recipe, "experts", expert_conf={"rank": 8}, init_expert=str(start))
    oracle = random_experts((STUDENT,), rank=6, alpha=6.0, seed=2)
    for name, layer in experts.layers.items():
        source = oracle.layers[name]
        for lang in LANGS:
            update = layer.scale * layer.lora_B[lang] @ layer.lora_A[lang]
            torch.testing.assert_close(update, source.scale * source.lora_B[STUDENT] @ source.lora_A[STUDENT])


@torch.no_grad()
def test_a_trained_mole_computes_what_the_one_that_was_saved_does(recipe, speech, tmp_path):
    mole = build(recipe, "mole", **mole_options(recipe)).eval()
    for layer in mole.frontend.fused.values():
        torch.nn.init.normal_(layer.logits)
    torch.nn.init.normal_(mole.frontend.classifier.mlp[-1].weight)
    save_trained(mole, tmp_path / MOLE_WEIGHTS)
    loaded = build(recipe, "mole", **mole_options(recipe), mole_weights=str(tmp_path / MOLE_WEIGHTS)).eval()
    for output, expected in zip(run_frontend(loaded, speech), run_frontend(mole, speech), strict=True):
        torch.testing.assert_close(
            getattr(output, "states", output), getattr(expected, "states", expected), atol=0, rtol=0
        )
    fresh = build(recipe, "mole", **mole_options(recipe)).eval()
    assert not torch.equal(run_frontend(fresh, speech)[1], run_frontend(mole, speech)[1])


def test_a_mole_of_other_experts_or_another_backbone_is_refused(recipe, tmp_path):
    weights = str(recipe / "exp/mole" / MOLE_WEIGHTS)
    others = random_experts(LANGS, seed=5)
    for lang in LANGS:
        save_adapter(others, lang, tmp_path / "adapters" / lang, "tiny")
    options = mole_options(recipe) | {"mole_weights": weights}
    with pytest.raises(ValueError, match="mole.safetensors was trained on another experts"):
        build(recipe, "mole", **options | {"experts": str(tmp_path / "adapters")})
    other = tiny_whisper()
    other.model.encoder.layers[0].final_layer_norm.weight.data += 0.1
    other.save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="mole.safetensors was trained on another backbone"):
        build(tmp_path, "mole", **options)


def test_a_mole_starts_from_one_of_fewer_languages(recipe, tmp_path):
    experts = random_experts((*LANGS, "ru"))
    for lang in experts.languages:
        save_adapter(experts, lang, tmp_path / lang, "tiny")
    options = mole_options(recipe) | {"experts": str(tmp_path), "langs": experts.languages}
    new = build(recipe, "mole", **options, init_mole=str(recipe / "exp/mole"))
    old = build(recipe, "mole", **mole_options(recipe), mole_weights=str(recipe / "exp/mole" / MOLE_WEIGHTS))
    assert torch.equal(trained_state(new)["fusion.logits"][..., :4], trained_state(old)["fusion.logits"])


def test_a_student_starts_as_the_average_and_learns_from_the_experts(recipe):
    student = build(recipe, "student", **prepared(recipe), expert_conf={"rank": 16, "alpha": 16.0})
    assert isinstance(student, LoRAKD) and same_factors(student.teacher, random_experts(LANGS))
    layer, experts = student.student.layers[LAYER], student.teacher.layers[LAYER]
    mean = sum(experts.scale * experts.lora_B[lang] @ experts.lora_A[lang] for lang in LANGS) / 4
    torch.testing.assert_close(layer.scale * layer.lora_B[STUDENT] @ layer.lora_A[STUDENT], mean, atol=1e-5, rtol=1e-4)
    random = build(recipe, "student", **prepared(recipe), student_init="random").student.layers[LAYER]
    assert not random.lora_B[STUDENT].any() and random.lora_A[STUDENT].any()


def test_a_student_without_distillation_has_no_teacher(recipe):
    student = build(recipe, "student", **prepared(recipe), kd_conf={"kd": "none"})
    assert student.teacher is None and student.student.layers[LAYER].lora_B[STUDENT].any()


def test_multilingual_is_one_new_lora_without_a_teacher(recipe):
    system = build(recipe, "multilingual", expert_conf={"rank": 4})
    assert system.teacher is None and system.config.kd == "none"
    assert same_factors(system.student, LoRAExperts(Whisper(tiny_whisper()), [STUDENT], ExpertConfig(rank=4)))


def test_a_trained_student_is_loaded(recipe):
    student = build(recipe, "student", adapters=str(recipe / "exp/student/adapters" / STUDENT))
    assert student.teacher is None
    assert same_factors(student.student, random_experts((STUDENT,), rank=6, alpha=6.0, seed=2))


@pytest.mark.parametrize("system", ["zero_shot", "full"])
def test_others_are_the_whisper_itself(recipe, system):
    whisper = build(recipe, system)
    assert isinstance(whisper, Whisper) and not any(p.requires_grad for p in whisper.parameters())


@pytest.mark.parametrize("system", ["experts", "mole", "student", "multilingual", "full"])
def test_a_system_without_weights_has_the_shapes_of_the_real_one(recipe, system):
    options = prepared(recipe) | {"system": system, "backbone": str(recipe / "tiny"), "langs": LANGS}
    options |= {"fusion_conf": {"shared_layers": 2}, "expert_conf": {"rank": 3}}
    config = SystemConfig.parse(options)
    real, empty = build_system(config), build_system(config, empty_whisper(str(recipe / "tiny")), empty_rank=4)
    shapes = [{name: (p.shape, p.requires_grad) for name, p in model.named_parameters()} for model in (real, empty)]
    assert shapes[0] == shapes[1]
    assert all(p.is_meta for name, p in empty.named_parameters() if "classifier" not in name)


@pytest.mark.parametrize("system", ["experts", "mole", "student", "full"])
def test_activation_checkpointing_is_of_every_whisper_in_a_system(recipe, system):
    for checkpointing in (False, True):
        built = build(recipe, system, **mole_options(recipe), activation_checkpointing=checkpointing)
        whispers = [module for module in built.modules() if isinstance(module, Whisper)]
        assert len(whispers) == (2 if system == "student" else 1)
        assert all((whisper.recompute is not None) == checkpointing for whisper in whispers)
    if system == "full":
        assert built.recompute is nullcontext


@pytest.mark.parametrize("system", ["mole", "student"])
def test_experts_of_another_padding_are_refused(recipe, tmp_path, system):
    """Unless a share of their batches had it."""
    given = mole_options(recipe) | {"experts": str(tmp_path)}
    for share_30s in (0.0, 0.1):
        experts = random_experts(LANGS, whisper=Whisper(tiny_whisper(), "+1s", share_30s=share_30s))
        for lang in LANGS:
            save_adapter(experts, lang, tmp_path / lang, "tiny")
        build(recipe, system, **given | {"pad_to": "+1.0s"})
        for pad_to in ("none", "30s") if not share_30s else ("none",):
            message = f"trained with pad_to: {pad_to}.*/de was trained with .1s.*set pad_to: .1s"
            with pytest.raises(ValueError, match=message):
                build(recipe, system, **given | {"pad_to": pad_to})
    build(recipe, system, **given | {"pad_to": "30s"})


def test_parts_that_are_missing_are_named(recipe, tmp_path):
    for system in ("mole", "student"):
        with pytest.raises(ValueError, match="expected --experts, the folder of the languages' adapters, got none"):
            build(recipe, system, fusion_conf={"shared_layers": 1})
    with pytest.raises(FileNotFoundError, match="expected adapters of de en fr zh in"):
        build(recipe, "mole", **mole_options(recipe) | {"experts": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="expected backbone to be a folder"):
        build(tmp_path, "experts")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": "espnet"}, "expected a system of zero_shot experts mole student multilingual full, got 'espnet'"),
        ({"student_init": "zero"}, "expected student_init: average or random, got 'zero'"),
        ({"expert_conf": {"ranks": 3}}, "expert_conf.*ranks"),
        ({"expert_conf": {"rank": "3"}}, "expert_conf"),
        ({"system": "mole", "fusion_conf": {}}, "fusion_conf.*shared_layers"),
        ({"kd_conf": {"kd": "some"}}, "kd_conf.*expected kd of"),
    ],
)
def test_mistakes_in_the_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SystemConfig.parse({"system": "experts", "backbone": "x", "langs": ["de"]} | options)


def test_other_options_of_a_training_are_ignored():
    """``fusion_conf`` is empty, and None is not given, in the options of a system that does not use them."""
    options = {"system": "experts", "backbone": "x", "langs": ["de"], "fusion_conf": {}, "pad_to": None, "max_epoch": 3}
    config = SystemConfig.parse(options)
    assert config.langs == ("de",) and config.pad_to is None and config.expert_conf == ExpertConfig()

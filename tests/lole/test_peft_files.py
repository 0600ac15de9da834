"""The law of foreign adapters: they compute what peft computes with them, or they are refused in words."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import peft
import pytest
import torch
from conftest import Evil
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperModel

from espnet_lole.lole.adapters import Adapter, build_experts
from espnet_lole.lole.peft_files import INERT_FIELDS, READ_FIELDS, read_shapes
from espnet_lole.whisper.model import Whisper

INPUTS = int(os.environ.get("LOLE_FUZZ", 25))
CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PATTERNS = [
    "fc1", "q_proj|v_proj", r".*decoder.*\.q_proj", "^model.encoder.layers.0.fc1", "layers.1.fc2",
    r"encoder\.layers\.\d+\.self_attn\.(q|k)_proj", "^encoder.layers.1.self_attn.v_proj", ".*", "proj",
    r"[^.]+\.fc2", "encoder_attn.q_proj", "model.decoder.layers.0.self_attn.k_proj", "self_attn.out_proj$",
]  # fmt: skip
TARGETS = [
    ["q_proj", "v_proj"], ["fc1", "fc2"], ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], "all-linear",
    r".*decoder.*\.(q_proj|fc1)", r".*\.self_attn\.(k|v)_proj", ["encoder_attn.q_proj", "fc2"],
    ["layers.0.fc1", "k_proj"],
]  # fmt: skip
NUMBERS = [0, 0, 1, 2]
EXCLUDED = [None, None, ["fc1"], r".*encoder_attn.*", ["layers.0.self_attn.q_proj"]]
PLAIN = [True, False, "gaussian", "eva", "orthogonal", "mica"]
MUTATED = ["pissa", "pissa_niter_2", "olora", "lora_ga"]
CONVERTIBLE = ["pissa", "pissa_niter_2", "olora"]
EXTRAS = [
    {"use_dora": True}, {"lora_bias": True}, {"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["conv1"]},
    {"trainable_token_indices": [1, 2]}, {"kasa_config": {"beta": 1e-4}}, {"layer_replication": [[0, 1], [0, 1]]},
    {"alora_invocation_tokens": [1]}, {"use_bdlora": {"nblocks": 2}}, {"target_parameters": ["fc1.weight"]},
    {"use_qalora": True}, {"velora_config": {"num_groups": 4}}, {"monteclora_config": {"num_samples": 2}},
    {"arrow_config": {"top_k": 1}}, {"megatron_config": {"hidden_size": 8}}, {"fan_in_fan_out": True},
    {"ensure_weight_tying": True}, {"init_lora_weights": "loftq"}, {"init_lora_weights": "corda"},
    {"init_lora_weights": "of_a_newer_peft"}, {"of_a_newer_peft": "on"}, {"gate_of_a_newer_peft": 0.5},
]  # fmt: skip
DECORATIONS = {
    "none": lambda key: key,
    "compiled": lambda key: f"_orig_mod.{key}",
    "parallel": lambda key: f"module.{key}",
    "compiled and parallel": lambda key: f"module._orig_mod.{key}",
    "compiled before peft": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "parallel before peft": lambda key: key.replace("base_model.model.", "base_model.model.module."),
    "compiled layers": lambda key: re.sub(r"(layers\.\d+)", r"\1._orig_mod", key),
    "named": lambda key: re.sub(r"(lora_[AB])", r"\1.default", key),
    "all": lambda key: re.sub(r"(lora_[AB])", r"\1.my_lora", f"module._orig_mod.{key}"),
    "bare": lambda key: key.removeprefix("base_model.model."),
}


def really_tiny_whisper() -> WhisperForConditionalGeneration:
    """A random Whisper of 2 + 1 layers for 12 frames."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=8, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=20, max_source_positions=6, max_target_positions=8,
        bos_token_id=1, eos_token_id=1, pad_token_id=1, decoder_start_token_id=2,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" not in name and "layer_norm" not in name:
                p.normal_(0.0, 0.3)
    return model.eval()


BACKBONE = really_tiny_whisper()
INPUT = {
    "input_features": torch.randn(1, 80, 12, generator=torch.Generator().manual_seed(1)),
    "decoder_input_ids": torch.tensor([[2, 3, 4, 5]]),
}


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """Compute logits (1, 4, V), of a bare model with the matrix of its token embeddings."""
    output = model.eval()(**INPUT)
    return output.logits if "logits" in output else output.last_hidden_state @ model.get_input_embeddings().weight.T


@torch.no_grad()
def our_logits(folder: Path) -> torch.Tensor:
    experts = build_experts(Whisper(copy.deepcopy(BACKBONE)), {"de": Adapter.read(folder)})
    with experts.activate([0]):
        return experts.whisper.model(**INPUT).logits


def backbone(bare: bool) -> WhisperForConditionalGeneration | WhisperModel:
    return copy.deepcopy(BACKBONE.model if bare else BACKBONE)


def draw_config(rng: random.Random) -> tuple[dict, bool]:
    """Draw options of a ``LoraConfig``, and whether the model is a bare ``WhisperModel``."""
    init = rng.choice(PLAIN * 3 + MUTATED)
    ranks = [2, 4] if init == "orthogonal" else [1, 2, 3, 4]
    options = {
        "r": rng.choice(ranks), "lora_alpha": rng.choice([1, 2, 8, 3.5, 16, -4, 0]),
        "target_modules": rng.choice(TARGETS),
        "exclude_modules": rng.choice(EXCLUDED), "use_rslora": rng.random() < 0.3, "init_lora_weights": init,
        "alpha_pattern": {rng.choice(PATTERNS): rng.choice([1, 5, 64, 0.5]) for _ in range(rng.choice(NUMBERS))},
        "rank_pattern": {rng.choice(PATTERNS): rng.choice(ranks) for _ in range(rng.choice(NUMBERS))},
        "lora_dropout": rng.choice([0.0, 0.1]),
    }  # fmt: skip
    if init in CONVERTIBLE:  # with several patterns, peft does not read the untrained adapter that it wrote
        ranks = {} if options["use_rslora"] else dict([*options["rank_pattern"].items()][:1])
        options |= {"lora_alpha": 8, "alpha_pattern": {}, "rank_pattern": ranks}
    if isinstance(options["target_modules"], list) and rng.random() < 0.3:
        options |= {"layers_to_transform": rng.choice([0, [1], [0, 1]])}
    return options, rng.random() < 0.25


def train(options: dict, bare: bool, folder: Path, convert: bool, pickled: bool) -> torch.Tensor:
    """Write an adapter with stock peft, after a training that changed all its weights, and return its logits."""
    model = peft.get_peft_model(backbone(bare), peft.LoraConfig(**options))
    model.create_or_update_model_card = lambda _folder: None  # which takes longer than all the rest
    initial = folder.parent / "initial"
    if convert:
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(initial)
        model.peft_config["default"].init_lora_weights = options["init_lora_weights"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight += 0.3 * torch.randn(weight.shape)
    logits = logits_of(model)
    more = {"path_initial_model_for_weight_conversion": str(initial)} if convert else {}
    model.save_pretrained(folder, safe_serialization=not pickled, **more)
    return logits


def rewrite(folder: Path, decoration: str, dtype: torch.dtype) -> None:
    """Give the weights other names and another precision."""
    pickled = (folder / PICKLE).is_file()
    tensors = torch.load(folder / PICKLE) if pickled else load_file(folder / WEIGHTS)
    tensors = {DECORATIONS[decoration](key): value.to(dtype) for key, value in tensors.items()}
    torch.save(tensors, folder / PICKLE) if pickled else save_file(tensors, folder / WEIGHTS)


def check_law(seed: int, folder: Path) -> str:
    """Check one adapter, and return what became of it: ``right`` or ``refused``."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    options, bare = draw_config(rng)
    init, plain = options["init_lora_weights"], options["init_lora_weights"] in PLAIN
    convert, pickled = init in CONVERTIBLE and rng.random() < 0.5, rng.random() < 0.2
    try:
        trained = train(options, bare, folder, convert, pickled)
    except ValueError as error:  # such as an exclusion of every target
        assert "modules" in str(error), error
        return "not trained"
    dtype, decoration = (
        rng.choice([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
        rng.choice([*DECORATIONS]),
    )
    rewrite(folder, "none", dtype)
    conf = json.loads((folder / CONFIG).read_text())
    patterns = [*conf["alpha_pattern"], *conf["rank_pattern"]]
    try:
        oracle = logits_of(peft.PeftModel.from_pretrained(backbone(bare), folder))
    except RuntimeError:  # peft sorts patterns when it writes them, and then another one matches first
        assert len(conf["rank_pattern"]) > 1
        oracle = None
    if dtype in (torch.float32, torch.float64) and len(patterns) < 2 and (plain or convert):
        torch.testing.assert_close(oracle, trained, atol=1e-3, rtol=1e-3)
    rewrite(folder, decoration, dtype)
    extra = rng.choice(EXTRAS) if rng.random() < 0.1 else {}
    (folder / CONFIG).write_text(json.dumps(conf | extra))
    try:
        ours = our_logits(folder)
    except ValueError as error:
        assert str(folder) in str(error)
        unclear = patterns and decoration in ("compiled before peft", "parallel before peft", "compiled layers")
        assert oracle is None or extra or not (plain or convert) or (unclear and "matches only one of" in str(error)), (
            error
        )
        return "refused"
    assert oracle is not None and not extra and (plain or convert)
    torch.testing.assert_close(ours, oracle, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours, logits_of(backbone(False)), atol=1e-4) or options["lora_alpha"] == 0
    return "right"


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_peft_computes_what_it_computes_there_or_is_refused(tmp_path):
    counts = Counter()
    for seed in range(INPUTS):
        try:
            counts[check_law(seed, tmp_path / str(seed) / "adapter")] += 1
        except Exception as error:
            raise AssertionError(f"adapter {seed}") from error
    print(dict(counts))
    assert counts["right"] > INPUTS / 2 and counts["refused"] > INPUTS / 10


@pytest.fixture
def adapter(tmp_path):
    """Return the folder of an adapter, and its logits."""
    options = {"r": 2, "target_modules": ["q_proj", "fc2"], "alpha_pattern": {"fc2": 3}}
    return tmp_path / "adapter", train(options, False, tmp_path / "adapter", convert=False, pickled=False)


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_every_field_of_peft_is_read_harmless_or_refused(adapter):
    folder, logits = adapter
    torch.testing.assert_close(our_logits(folder), logits, atol=1e-4, rtol=1e-4)
    for name in {field.name for field in fields(peft.LoraConfig)} - {*READ_FIELDS, *INERT_FIELDS} | {"of_a_newer_peft"}:
        edit_config(folder, **{name: ["something"]})
        with pytest.raises(ValueError, match=rf"{CONFIG}: expected a plain LoRA adapter, got one with \['{name}'\]"):
            Adapter.read(folder)
        edit_config(folder, **{name: None})
    Adapter.read(folder)


@pytest.mark.parametrize(
    ("init", "remedy"),
    [
        ("pissa_niter_4", "convert it with peft's save_pretrained.*path_initial_model_for_weight_conversion"),
        ("lora_ga", "path_initial_model_for_weight_conversion"),
        ("loftq", "not known to leave the weights of the backbone as they are"),
        ("of_a_newer_peft", "not known to leave the weights"),
    ],
)
def test_initialisations_that_change_the_backbone_are_refused(adapter, init, remedy):
    edit_config(adapter[0], init_lora_weights=init)
    with pytest.raises(ValueError, match=f"{CONFIG}: init_lora_weights: {init} .*{remedy}"):
        Adapter.read(adapter[0])


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_documented_conversion_computes_what_the_adapter_did(tmp_path, monkeypatch, init):
    """The commands of docs/add_language.md, on a backbone of the tests."""
    options = {"r": 2, "target_modules": ["q_proj", "fc2"], "init_lora_weights": init}
    logits = train(options, False, tmp_path / "my_adapter", convert=False, pickled=False)
    BACKBONE.save_pretrained(tmp_path / "backbone")
    guide = (Path(__file__).parents[2] / "docs" / "add_language.md").read_text()
    code = re.search(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("openai/whisper-medium", "backbone"), {})
    torch.testing.assert_close(our_logits(tmp_path / "converted"), logits, atol=1e-4, rtol=1e-4)


def test_the_state_of_a_model_that_torch_wraps_is_an_adapter(adapter):
    """Compiled, then data-parallel: names as torch makes them."""
    folder, logits = adapter
    model = peft.PeftModel.from_pretrained(backbone(False), folder)
    wrapped = torch.nn.DataParallel(torch.compile(model, backend="eager"))
    state = {key: value.clone() for key, value in wrapped.state_dict().items() if "lora_" in key}
    assert all(key.startswith("module._orig_mod.base_model.model.") and ".default." in key for key in state)
    save_file(state, folder / WEIGHTS)
    torch.testing.assert_close(our_logits(folder), logits, atol=1e-4, rtol=1e-4)


def test_a_compiled_model_that_peft_adapts_has_the_scales_of_its_names(tmp_path):
    model = torch.compile(backbone(False), backend="eager")
    config = peft.LoraConfig(target_modules=["fc1"], alpha_pattern={"^_orig_mod.model.encoder.layers.0.fc1": 3})
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"alpha_pattern matches only one of \('_orig_mod.model.encoder.layers.0.fc1', "
    ):
        Adapter.read(tmp_path)
    edit_config(tmp_path, alpha_pattern={"encoder.layers.0.fc1": 3})
    scales = Adapter.read(tmp_path).scales
    assert scales["model.encoder.layers.0.fc1"] == 3 / 8 and scales["model.encoder.layers.1.fc1"] == 1


def test_weights_that_are_no_single_plain_adapter_are_refused(adapter, tmp_path):
    folder, _ = adapter
    with pytest.raises(FileNotFoundError, match="adapter_config.json is not there"):
        Adapter.read(tmp_path)
    file, pickled = folder / WEIGHTS, folder / PICKLE
    tensors = load_file(file)
    name, value = next(iter(tensors.items()))
    other = name.replace(".lora_A.", ".lora_A.second.").replace(".lora_B.", ".lora_B.second.")
    damages = [
        ({other: value.clone()}, "expected one adapter, got several"),
        ({f"module.{name}": value.clone()}, "expected one adapter, got several"),
        (
            {"base_model.model.model.encoder.conv1.weight": value.clone()},
            "expected weights of lora_A and lora_B of linears",
        ),
        ({name: value[:0].contiguous()}, "expected finite matrices, .* gather sharded weights"),
        ({name: value[None].clone()}, "expected finite matrices, .* on linears alone"),
    ]
    for damage, message in damages:
        save_file(tensors | damage, file)
        with pytest.raises(ValueError, match=message):
            Adapter.read(folder)
    save_file({key: value for key, value in tensors.items() if "layers.0.fc2" not in key}, file)
    with pytest.raises(ValueError, match=r"expected weights for every target of .*layers.0.fc2.* it is not whole"):
        our_logits(folder)
    save_file(tensors, file)
    edit_config(folder, r=3)
    with pytest.raises(ValueError, match=r"expected rank 3 of .* as adapter_config.json says, got 2 in the weights"):
        Adapter.read(folder)
    edit_config(folder, r=2, alpha_pattern={"fc2(": 3})
    with pytest.raises(ValueError, match=r"expected rank and alpha of .*adapter_config.json, got: .*[eE]rror"):
        Adapter.read(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"expected a peft adapter with {WEIGHTS}"):
        Adapter.read(folder)
    for content in (b"", b"garbage", pickle.dumps(Evil(tmp_path / "ran")), pickle.dumps(["no tensors"])):
        pickled.write_bytes(content)
        with pytest.raises(ValueError, match=str(pickled)):
            Adapter.read(folder)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match="lole add-expert` reads adapter_model.bin and writes it"):
        read_shapes(folder)

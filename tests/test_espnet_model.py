"""What all models that ESPnet trains share: prompts and labels, checkpoints, and options of large trainings."""

import pytest
import torch
from conftest import LANGS, TEXTS, make_batch
from espnet_models import ADAPTED, CODES, experts_model, full_model, mole_model, student_model, trained

from espnet_lole.espnet_model import AbsLoLEModel
from espnet_lole.train.targets import make_targets

ALL = ADAPTED | {"full": full_model}


def gradients(model: AbsLoLEModel, batch: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch)[0].backward()
    return {name: p.grad.clone() for name, p in trained(model).items() if p.grad is not None}


def test_the_decoder_reads_prompt_and_text_and_predicts_text_and_end(speech):
    model = experts_model()
    batch = make_batch(model, [0, 1, 2, 3], speech)
    targets = make_targets(
        model.prompts, model.tokenizer.eot, batch["text"], batch["text_lengths"], batch["lang"][:, 0]
    )
    size = targets.tokens.shape[1]
    for row in range(4):
        tokenizer, lang = model.tokenizer, LANGS[row]
        ids = [*tokenizer.prompt(lang), *tokenizer.encode(TEXTS[row], lang), tokenizer.eot]
        read = targets.tokens[row].tolist()
        assert read == ids[:-1] + [tokenizer.eot] * (size - len(ids) + 1) and targets.lengths[row] == len(ids) - 1
        own = targets.index // size == row
        assert (targets.index[own] - row * size).tolist() == list(range(3, len(ids) - 1))
        assert targets.labels[own].tolist() == ids[4:]
    with_language = targets.with_language(model.prompts[targets.language, 1])
    assert with_language.index[-4:].tolist() == [0, size, 2 * size, 3 * size]
    assert with_language.labels[-4:].tolist() == [model.tokenizer.language(lang) for lang in LANGS]


@pytest.mark.parametrize("system", ALL)
def test_a_share_of_the_training_batches_is_padded_to_30s_evenly_and_alike_in_each_epoch(system, speech):
    model, other = ALL[system](), ALL[system]()
    model.whisper.share_30s = 0.4
    batch, lengths = make_batch(model, [0, 1], speech), []
    assert model.eval()(**batch)[0] == other.eval()(**batch)[0]  # validated as decoded
    losses_of = model.compute_losses
    model.compute_losses = lambda *inputs: (lengths.append(inputs[0].states.shape[1]), losses_of(*inputs))[1]
    for epoch in (1, 2):
        model.train().start_epoch(epoch, 2)
        losses = [model(**batch)[0] for _ in range(5)]
    assert [length == 1500 for length in lengths] == [False, False, True, False, True] * 2
    assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize("system", ALL)
def test_a_checkpoint_holds_what_trains_and_comes_back(system):
    model, other = ALL[system](), ALL[system]()
    for p in trained(model).values():
        torch.nn.init.normal_(p)
    state = model.state_dict()
    buffers = {name.rpartition(".")[2] for name in set(state) - set(trained(model))}
    of_mole = {"experts_fingerprint", "count", "mean", "variance"} if system == "mole" else set()
    assert set(trained(model)) <= set(state) and buffers == {"backbone_fingerprint"} | of_mole
    other.load_state_dict(state)
    assert all(torch.equal(p, trained(other)[name]) for name, p in trained(model).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "trained on another backbone, or on one that was trained again since"),
        ({"langs": ("de", "en")}, "expected a checkpoint for the languages de en"),
        ({"rank": 2}, "got another in"),
    ],
)
def test_foreign_checkpoints_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        experts_model(**options).load_state_dict(experts_model().state_dict())


def test_a_checkpoint_of_other_experts_is_refused():
    with pytest.raises(ValueError, match="trained on another experts"):
        mole_model(seed=1).load_state_dict(mole_model().state_dict())


def test_incomplete_checkpoints_are_refused():
    state = experts_model().state_dict()
    name = next(iter(state))
    state.pop(name)
    with pytest.raises(ValueError, match=rf"got another in 1 tensors, e.g. {name}: None"):
        experts_model().load_state_dict(state, strict=False)


@pytest.mark.parametrize("system", ADAPTED)
def test_activation_checkpointing_gives_the_same_gradients_and_stores_less(system, speech):
    model = ADAPTED[system]()
    batch = make_batch(model, [0, 1, 2, 3], speech)
    stored, results = [], []
    for checkpointing in (False, True):
        if checkpointing:
            for part in {"experts": ["experts"], "mole": ["mole.experts"], "student": ["kd.student", "kd.teacher"]}[
                system
            ]:
                model.get_submodule(part).checkpoint_activations()
        sizes = []

        def pack(x, sizes=sizes):
            if x.shape[-1:] != (51865,):  # logits of the vocabulary are in no layer
                sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model(**batch)[0]
        stored.append(sum(sizes))
        model.zero_grad()
        loss.backward()
        results.append({name: p.grad for name, p in trained(model).items()})
    for name, grad in results[0].items():
        assert (grad is None) == (results[1][name] is None)
        if grad is not None:
            torch.testing.assert_close(results[1][name], grad)
    assert stored[1] < stored[0] / 2


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("system", ADAPTED)
def test_espnets_autocast_around_the_models_own_gives_nearly_the_same_gradients(system, precision, speech):
    """Either or both; gradients of float32 parameters are in float32."""
    model = ADAPTED[system]()
    batch = make_batch(model, [0, 1, 2, 3], speech)
    exact, model = gradients(model, batch), ADAPTED[system](precision=precision)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch)[0]
    assert loss.dtype == torch.float32
    loss.backward()
    compared = 0
    for name, grad in exact.items():
        if grad.norm() > 1e-3:
            got = model.get_parameter(name).grad
            assert got.dtype == torch.float32
            assert torch.cosine_similarity(grad.flatten(), got.flatten(), dim=0) > 0.9, name
            compared += 1
    assert compared >= len(exact) / 2  # of a new adapter only B has a gradient


@pytest.mark.parametrize("system", ALL)
def test_features_for_espnets_statistics_have_a_row_for_each_frame(system, speech):
    feats = ALL[system]().collect_feats(*speech)
    assert feats["feats"].shape == (4, 100, 80) and feats["feats_lengths"].tolist() == [100, 56, 77, 31]


def test_a_student_has_the_languages_of_its_training():
    assert student_model(teacher=False, kd="none").languages == CODES


@pytest.mark.parametrize("system", [*ADAPTED, "full"])
def test_encode_is_the_encoder_that_decodes_whatever_else_is_in_the_batch(system, speech):
    model = (full_model if system == "full" else ADAPTED[system])().eval()
    lang = torch.tensor([[CODES.index(lang)] for lang in LANGS])
    states, lengths = model.encode(*speech, lang)
    assert lengths.tolist() == [(samples // 160 + 1) // 2 for samples in speech[1].tolist()]
    for row, (samples, frames) in enumerate(zip(speech[1].tolist(), lengths.tolist(), strict=True)):
        alone, count = model.encode(speech[0][row : row + 1, :samples], speech[1][row : row + 1], lang[row : row + 1])
        assert count.tolist() == [frames]
        torch.testing.assert_close(states[row, :frames], alone[0], rtol=1e-4, atol=1e-4)


def test_encode_uses_the_expert_of_the_given_or_identified_language(speech):
    model = mole_model().eval()
    states = torch.stack([model.encode(*speech, torch.full((4, 1), i))[0] for i in range(len(CODES))])
    found = model.mole.frontend(model.whisper.embed_speech(*speech))[2].argmax(1)
    torch.testing.assert_close(model.encode(*speech)[0], states[found, torch.arange(4)])
    assert not torch.allclose(states[0], states[1])
    with pytest.raises(ValueError, match="experts need the language of each utterance"):
        experts_model().encode(*speech)

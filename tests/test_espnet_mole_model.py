import pytest
import torch
from conftest import make_batch, random_experts, tiny_whisper

from espnet_lole.espnet_model import ESPnetExpertModel
from espnet_lole.espnet_mole_model import ESPnetMoLEModel
from espnet_lole.lole.adapters import save_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.lole.mole import MoLE
from espnet_lole.tasks.lole import LoLETask
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

LANGS = ("de", "en", "fr", "zh")


def make_model(seed=0, shared_layers=2, lid_weight=0.5, **classifier) -> ESPnetMoLEModel:
    backbone = Backbone(tiny_whisper()).eval().requires_grad_(False)
    bank = random_experts(ExpertBank(backbone.model, LANGS, ExpertConfig(rank=4, alpha=8.0)), seed)
    torch.manual_seed(0)
    mole = MoLE(backbone, bank, FusionConfig(shared_layers), ClassifierConfig(hidden=8, dropout=0.0, **classifier))
    return ESPnetMoLEModel(mole, WhisperTokens(51865), lid_weight)


def test_loss_is_text_through_the_true_expert_and_weighted_language(speech):
    model = make_model()
    batch = make_batch(model, [0, 1, 2, 3], speech)
    loss, stats, weight = model(**batch)
    torch.testing.assert_close(loss, stats["loss_asr"] + 0.5 * stats["loss_lid"])
    assert weight == 4
    plain = make_model(shared_layers=0)
    experts = ESPnetExpertModel(plain.backbone, plain.bank, plain.tokens)
    torch.testing.assert_close(plain(**batch)[1]["loss_asr"], experts(**batch)[1]["loss"])
    assert stats["lid_acc_fr"].isnan() and not stats["lid_acc_de"].isnan()
    assert stats["fusion_de"] == pytest.approx(0.25)


def test_class_weights_are_those_of_a_weighted_mean(speech):
    model = make_model(class_weights={"de": 3.0}).eval()
    batch = make_batch(model, [0, 1, 2, 3], speech)
    alone = [make_model().eval()(**make_batch(model, [i], speech))[1]["loss_lid"] for i in range(4)]
    weights = torch.tensor([3.0, 1.0, 3.0, 1.0])
    torch.testing.assert_close(model(**batch)[1]["loss_lid"], (weights * torch.stack(alone)).sum() / weights.sum())
    for wrong in ({"tr": 2.0}, {"de": 0.0}):
        with pytest.raises(ValueError, match="expected class_weights above 0 for languages of de en fr zh, got"):
            make_model(class_weights=wrong)


def test_only_fusion_and_classifier_train_and_are_saved(speech):
    model = make_model()
    model(**make_batch(model, [0, 1, 2, 3], speech))[0].backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.partition(".")[0] for name in with_gradient} == {"fusion", "classifier"}
    counted = {f"classifier.norm.{name}" for name in ("count", "mean", "variance")}
    prints = {"backbone_fingerprint", "experts_fingerprint"}
    assert set(model.state_dict()) == with_gradient | counted | prints


def test_replay_is_of_this_epoch(speech):
    model = make_model(replay=5)
    batches = [make_batch(model, langs, speech) for langs in ([0, 0, 0, 0], [3, 3, 3, 3])]
    model(**batches[0])
    model.start_epoch(2)
    for batch in batches[1:] * 2:
        model(**batch)
        assert (model.memory.draw(20)[1] == 3).all()
    statistics = model.eval().classifier.pool(model.mole.shallow(*speech))
    assert model.classifier.norm.count == 12
    again = make_model().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.classifier.score(statistics), model.classifier.score(statistics))


def test_replay_and_smoothing_are_of_training(speech):
    """Utterances that are alike cost the same however often they are drawn, with the loss that torch gives."""
    speech = speech[0][:1].expand(4, -1), speech[1][:1].expand(4)
    for options, smoothing in (
        ({}, 0.0),
        ({"replay": 7}, 0.0),
        ({"label_smoothing": 0.2}, 0.2),
        ({"replay": 7, "label_smoothing": 0.2}, 0.2),
    ):
        model = make_model(**options)
        batch = make_batch(model, [1, 1, 1, 1], speech)
        cost = model(**batch)[1]["loss_lid"]
        scores = model.eval().classifier(model.mole.shallow(*speech))
        wanted = torch.nn.functional.cross_entropy(scores, torch.tensor([1] * 4), label_smoothing=smoothing)
        torch.testing.assert_close(cost, wanted)
        torch.testing.assert_close(
            model(**batch)[1]["loss_lid"], torch.nn.functional.cross_entropy(scores, torch.tensor([1] * 4))
        )


def test_what_is_replayed_counts_in_the_loss(speech, monkeypatch):
    """With known draws the cost is the mean over the batch and the remembered utterances drawn."""
    model, rows = make_model(replay=3), torch.tensor([3, 0, 0])
    torch.nn.init.normal_(model.classifier.mlp[-1].weight)
    batch = make_batch(model, [0, 1, 2, 3], speech)
    model(**batch)
    monkeypatch.setattr(torch, "randint", lambda _most, size, device: rows[: size[0]])
    cost = model(**batch)[1]["loss_lid"]
    languages = batch["lang"][:, 0]
    scores = model.eval().classifier(model.mole.shallow(*speech))
    own = torch.arange(4)
    plain, replayed = (
        torch.nn.functional.cross_entropy(scores[i], languages[i]) for i in (own, torch.cat([own, rows]))
    )
    torch.testing.assert_close(cost, replayed)
    assert (cost - plain).abs() > 0.01


def test_learns_the_languages(speech):
    model = make_model()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    batch = make_batch(model, [0, 1, 3], speech)
    first = model(**batch)[0].item()
    for _ in range(40):
        optimizer.zero_grad()
        loss, stats, _ = model(**batch)
        loss.backward()
        optimizer.step()
    assert stats["lid_acc"] == 1.0 and loss.item() < first


def test_checkpoint_of_other_experts_is_refused():
    with pytest.raises(ValueError, match="expected a checkpoint trained on the same experts"):
        make_model(seed=1).load_state_dict(make_model().state_dict())


def test_task_builds_it_on_a_folder_of_adapters(tmp_path):
    model = make_model()
    tiny_whisper().save_pretrained(tmp_path / "tiny")
    for lang in LANGS:
        save_expert(model.bank, lang, tmp_path / "adapters" / lang, "tiny")
    options = ["--system", "mole", "--backbone", str(tmp_path / "tiny"), "--langs", *LANGS, "--output_dir", "x"]
    options += [
        "--fusion_conf",
        "shared_layers=2",
        "--classifier_conf",
        "hidden=8",
        "--classifier_conf",
        "class_weights.de=2.0",
        "--fusion_lr_factor",
        "10",
    ]
    options += ["--optim", "adamw", "--optim_conf", "lr=0.01"]
    args = LoLETask.get_parser().parse_args([*options, "--experts", str(tmp_path / "adapters")])
    built = LoLETask.build_model(args)
    assert built.class_weights.tolist() == [2.0, 1.0, 1.0, 1.0]
    built.load_state_dict(model.state_dict())
    (optimizer,) = LoLETask.build_optimizers(args, built)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1]
    with pytest.raises(ValueError, match="expected --experts"):
        LoLETask.build_model(LoLETask.get_parser().parse_args(options))
    args.optim = "expert_adamw"
    with pytest.raises(ValueError, match="expected optim: expert_adamw for experts"):
        LoLETask.build_optimizers(args, built)


def test_starts_from_a_mole_of_fewer_languages(speech):
    """One language more: what the others had stays, and the new one is as likely as the average of them."""
    model = make_model()
    torch.nn.init.normal_(model.fusion.raw)
    old = model.state_dict()
    for name in ("fusion.raw", "classifier.mlp.4.weight", "classifier.mlp.4.bias"):
        old[name] = old[name][..., :3] if name == "fusion.raw" else old[name][:3]
    new = make_model()
    new.start_from(old, ["zh", "de", "en"])  # in another order than in the new system
    assert torch.equal(new.fusion.raw[..., [3, 0, 1]], old["fusion.raw"])
    torch.testing.assert_close(new.fusion.raw[..., 2], old["fusion.raw"].mean(-1))
    scores = new.classifier(new.mole.shallow(*speech))
    torch.testing.assert_close(new.classifier.mlp[4].bias[[3, 0, 1]], old["classifier.mlp.4.bias"])
    assert scores.shape == (4, 4)
    with pytest.raises(ValueError, match="got one of \\['tr'\\] too"):
        new.start_from(old, ["zh", "de", "tr"])
    with pytest.raises(ValueError, match="expected fusion.raw of shape"):
        new.start_from(old, ["zh", "de"])

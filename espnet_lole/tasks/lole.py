"""ESPnet's task for LoRA language experts."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.tasks.abs_task import AbsTask, IteratorOptions, optim_classes
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.collate_fn import CommonCollateFn
from espnet2.train.distributed_utils import get_rank
from espnet2.train.preprocessor import AbsPreprocessor
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str2bool

from espnet_lole.atomic_io import held
from espnet_lole.config import load_yaml, read_conf
from espnet_lole.data.kaldi import read_table
from espnet_lole.espnet_full_model import ESPnetFullModel
from espnet_lole.espnet_model import IGNORE, AbsLoLEModel, ESPnetExpertModel, describe
from espnet_lole.espnet_mole_model import ESPnetMoLEModel
from espnet_lole.espnet_student_model import STUDENT, DistillConfig, ESPnetStudentModel
from espnet_lole.lole.adapters import Adapter, load_bank, load_expert
from espnet_lole.lole.bank import ExpertBank, ExpertConfig
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.experts import hold_routes
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.lole.kd_init import start_student
from espnet_lole.lole.mole import MoLE
from espnet_lole.train.checkpoints import read_checkpoint
from espnet_lole.train.optimizer import ExpertAdamW
from espnet_lole.train.sampler import BalancedIterFactory
from espnet_lole.train.specaug import Augment
from espnet_lole.train.trainer import LoLETrainer
from espnet_lole.whisper.checkpoint import PRECISIONS, load_backbone, load_config
from espnet_lole.whisper.features import MAX_SAMPLES, MIN_SAMPLES
from espnet_lole.whisper.model import Backbone
from espnet_lole.whisper.tokenizer import WhisperTokens

optim_classes["expert_adamw"] = ExpertAdamW  # ESPnet looks optimizers up here
STARTS = ("average", "random")
"""Of a student: the average of the experts, or random weights."""


class LoLEPreprocessor(AbsPreprocessor):
    """Texts to token ids and language codes to expert indices.

    Args:
        train: ESPnet's flag.
        languages: the codes of the experts, in order.
        tokens: the backbone's tokens.
    """

    def __init__(self, train: bool, languages: Collection[str], tokens: WhisperTokens) -> None:
        super().__init__(train)
        self.index = {lang: i for i, lang in enumerate(languages)}
        self.tokens = tokens

    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, np.ndarray]:
        """Prepare one utterance.

        Raises:
            ValueError: its language has no expert, or its audio is too short, too long or of several channels.
        """
        lang, speech = data["lang"], data["speech"]
        if lang not in self.index:
            raise ValueError(
                f"{uid}: expected a language of the experts {' '.join(self.index)}, got {lang!r}: mend utt2lang or --langs"
            )
        if speech.ndim != 1 or not MIN_SAMPLES <= len(speech) <= MAX_SAMPLES:
            raise ValueError(
                f"{uid}: expected 25 ms to 30 s of mono audio at 16 kHz, got shape {speech.shape}: run stages 3 and 4"
            )
        prepared = {"speech": speech.astype(np.float32), "lang": np.array([self.index[lang]], dtype=np.int64)}
        if "text" in data:
            prepared["text"] = np.array(self.tokens.encode(data["text"], lang), dtype=np.int64)
        return prepared


class LoLECollateFn(CommonCollateFn):
    """Pads speech with zeros and text with -1; the utterances of a language follow one another, which takes fewer products."""

    def __init__(self) -> None:
        super().__init__(float_pad_value=0.0, int_pad_value=IGNORE)

    def __call__(self, data: Collection[tuple[str, dict[str, np.ndarray]]]) -> tuple[list[str], dict[str, torch.Tensor]]:
        """The ids and the tensors of a batch."""
        return super().__call__(sorted(data, key=lambda item: int(item[1]["lang"][0])))


class LoLETask(AbsTask):
    """Trains language experts with ESPnet's trainer."""

    num_optimizers: int = 1
    class_choices_list: list = []
    trainer = LoLETrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of the backbone and of the experts."""
        group = parser.add_argument_group(description="LoRA language experts")
        group.add_argument("--backbone", type=str, default=None, help="hub name or folder of a transformers Whisper")
        group.add_argument("--window", default="short", help="length of the input: short, short+<seconds>s or 30s")
        group.add_argument("--precision", type=str, default="float32", choices=PRECISIONS, help="of the matrix products")
        group.add_argument("--checkpointing", type=str2bool, default=False, help="compute layers again instead of keeping them")
        group.add_argument("--specaug_conf", action=NestedDictAction, default={}, help="ESPnet's SpecAug, on Whisper's features")
        group.add_argument("--langs", type=str, nargs="+", default=None, help="languages, an expert each")
        group.add_argument("--system", type=str, default="experts", choices=list(SYSTEMS), help="what is trained")
        group.add_argument("--expert_conf", action=NestedDictAction, default={}, help="rank, alpha, dropout, targets")
        group.add_argument("--expert_start", type=str, default=None, help="experts: an adapter that they start from")
        group.add_argument("--mole_start", type=str, default=None, help="mole: a checkpoint of fewer languages to start from")
        group.add_argument("--experts", type=str, default=None, help="mole, student: folder of the experts' adapters")
        group.add_argument("--fusion_conf", action=NestedDictAction, default={}, help="mole: shared_layers and their fusion")
        group.add_argument("--fusion_lr_factor", type=float, default=1.0, help="mole: times the learning rate, for the fusion")
        group.add_argument(
            "--classifier_conf", action=NestedDictAction, default={}, help="mole: shape and loss of the language classifier"
        )
        group.add_argument("--student_start", type=str, default="average", choices=STARTS, help="student: its start")
        group.add_argument(
            "--distill_conf", action=NestedDictAction, default={}, help="student: kd and the weights of its losses"
        )
        group.add_argument("--lang_temperature", type=float, default=1.0, help="of languages, with iterator_type: task")
        group.add_argument("--lid_weight", type=float, default=1.0, help="mole: of the language's cross-entropy in the loss")
        group.add_argument("--model_conf", action=NestedDictAction, default={}, help="unused; ESPnet reads it")
        group.add_argument("--use_preprocessor", type=str2bool, default=True, help="ESPnet's; always true here")

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool) -> Callable:
        """What makes a batch of utterances."""
        return LoLECollateFn()

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> LoLEPreprocessor:
        """The preprocessor of one utterance."""
        return LoLEPreprocessor(train, args.langs, WhisperTokens(load_config(args.backbone).vocab_size))

    @classmethod
    def build_task_iter_factory(cls, args: argparse.Namespace, iter_options: IteratorOptions, mode: str) -> BalancedIterFactory:
        """``iterator_type: task``: batches balanced over the languages."""
        (shape_file,) = iter_options.shape_files
        lang_file = next(path for path, name, _ in iter_options.data_path_and_name_and_type if name == "lang")
        ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if iter_options.distributed else (0, 1)
        return BalancedIterFactory(
            cls.build_dataset(args, iter_options),
            {utt: int(samples) for utt, samples in read_table(Path(shape_file)).items()},
            read_table(Path(lang_file)),
            args.lang_temperature,
            iter_options.batch_bins,
            *ranks,
            seed=args.seed,
            num_workers=args.num_workers,
            collate_fn=iter_options.collate_fn,
            pin_memory=args.ngpu > 0,
        )

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """What an utterance must have."""
        return ("speech", "lang") if inference else ("speech", "text", "lang")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """What an utterance may have besides."""
        return ()

    @classmethod
    def check_required_command_args(cls, args: argparse.Namespace) -> None:
        """Refuse a configuration without a backbone or languages."""
        super().check_required_command_args(args)
        for name in ("backbone", "langs"):
            if not getattr(args, name) and not args.print_config:
                raise ValueError(f"expected --{name}, got none: give it in the config or on the command line")

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Train as this process's part, while no other training writes to ``args.output_dir``.

        Raises:
            BlockingIOError: another does.
        """
        first = get_rank(args.dist_rank, args.dist_launcher) in (None, 0)
        with held(args.output_dir) if first else nullcontext():
            super().main_worker(args)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> AbsLoLEModel:
        """The frozen backbone with the system's parts on it.

        Raises:
            ValueError: unknown languages, targets or keys of a configuration, or half precision without a scaled loss.
            FileNotFoundError: the backbone or a language's expert is missing.
        """
        if args.precision == "float16" and not args.use_amp:
            raise ValueError(
                "expected use_amp: true with precision: float16, whose small gradients vanish unless they are scaled"
            )
        backbone = load_backbone(args.backbone, args.window, args.precision).requires_grad_(False)
        tokens = WhisperTokens(backbone.model.config.vocab_size)
        model = SYSTEMS[args.system](args, backbone, tokens)
        if args.specaug_conf:
            backbone.augment = Augment(args.specaug_conf)
        if args.checkpointing:
            backbone.recompute = partial(hold_routes, backbone)
        model.register_forward_hook(lambda _model, _inputs, outputs: force_gatherable(outputs, outputs[0].device))
        logging.info(describe(model))
        return model

    @classmethod
    def build_model_from_file(
        cls, config_file: Path | str | None = None, model_file: Path | str | None = None, device: str = "cpu"
    ) -> tuple[AbsLoLEModel, argparse.Namespace]:
        """A trained model and its options; unlike ESPnet's own, this runs no code that the checkpoint may hold.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the checkpoint is broken, holds more than tensors, or is of another model.
        """
        config_file = Path(model_file).parent / "config.yaml" if config_file is None else Path(config_file)
        args = argparse.Namespace(**load_yaml(config_file))
        model = cls.build_model(args).to(device)
        if model_file is not None:
            model.load_state_dict(read_checkpoint(model_file))
        return model, args

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: AbsLoLEModel) -> list[torch.optim.Optimizer]:
        """The optimizer of the trained parameters.

        Experts have ``expert_adamw``, which gets ``grad_clip`` because each is clipped alone. The weights of a fusion learn at
        ``fusion_lr_factor`` times the learning rate.

        Raises:
            ValueError: another optimizer than ``expert_adamw`` for experts, which would move those that are not in a batch.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        if (args.optim == "expert_adamw") != isinstance(model, ESPnetExpertModel):
            raise ValueError(
                f"expected optim: expert_adamw for experts, which does not move those absent from a batch, and one of ESPnet's "
                f"for the other systems, got {args.optim!r} for system {args.system!r}"
            )
        if isinstance(model, ESPnetExpertModel):
            optimizer = ExpertAdamW(trained, **{"max_grad_norm": args.grad_clip, **args.optim_conf})
            args.grad_clip = math.inf
            return [optimizer]
        if not isinstance(model, ESPnetMoLEModel):
            return [optim_classes[args.optim](trained, **args.optim_conf)]
        fused = {id(p) for p in model.fusion.parameters()}
        groups = [
            {"params": [p for p in trained if id(p) not in fused]},
            {"params": list(model.fusion.parameters()), "lr": args.optim_conf["lr"] * args.fusion_lr_factor, "weight_decay": 0.0},
        ]
        return [optim_classes[args.optim](groups, **args.optim_conf)]


def build_experts(args: argparse.Namespace, backbone: Backbone, tokens: WhisperTokens) -> ESPnetExpertModel:
    """New experts for the languages, from random weights or from an adapter."""
    bank = ExpertBank(backbone.model, args.langs, read_conf(ExpertConfig, args.expert_conf, "expert_conf"), args.seed)
    if args.expert_start is not None:
        adapter = Adapter.read(Path(args.expert_start))
        for lang in args.langs:
            load_expert(bank, lang, adapter)
    return ESPnetExpertModel(backbone, bank, tokens)


def build_mole(args: argparse.Namespace, backbone: Backbone, tokens: WhisperTokens) -> ESPnetMoLEModel:
    """MoLE on the prepared experts of the languages.

    Raises:
        ValueError: no folder of experts is given.
    """
    if args.experts is None:
        raise ValueError("expected --experts, the folder of the languages' adapters, got none: train the experts first")
    bank = load_bank(backbone.model, Path(args.experts), args.langs)
    fusion = read_conf(FusionConfig, args.fusion_conf, "fusion_conf")
    classifier = read_conf(ClassifierConfig, args.classifier_conf, "classifier_conf")
    model = ESPnetMoLEModel(MoLE(backbone, bank, fusion, classifier), tokens, args.lid_weight)
    if args.mole_start is not None:
        start = Path(args.mole_start)
        languages = load_yaml(start.parent / "config.yaml")["langs"]
        model.start_from(read_checkpoint(start), languages)
    return model


def build_student(args: argparse.Namespace, backbone: Backbone, tokens: WhisperTokens) -> ESPnetStudentModel:
    """A student on the frozen backbone, around the experts if they teach it or start it.

    Raises:
        ValueError: they do, and no folder of experts is given.
    """
    conf = read_conf(DistillConfig, args.distill_conf, "distill_conf")
    experts = None
    if conf.kd != "none" or args.student_start == "average":
        if args.experts is None:
            raise ValueError("expected --experts, the folder of the languages' adapters, got none: train the experts first")
        experts = load_bank(backbone.model, Path(args.experts), args.langs)
    student = ExpertBank(backbone.model, [STUDENT], read_conf(ExpertConfig, args.expert_conf, "expert_conf"), args.seed)
    if args.student_start == "average":
        kept = start_student(student, experts)
        low = min(kept, key=kept.get)
        logging.info(
            f"start: the average of the experts, of whose energy rank {student.config.rank} keeps "
            f"{100 * sum(kept.values()) / len(kept):.1f} % on average, least in {low}: {100 * kept[low]:.1f} %"
        )
    return ESPnetStudentModel(backbone, args.langs, experts, student, tokens, conf, args.max_epoch)


def build_full(args: argparse.Namespace, backbone: Backbone, tokens: WhisperTokens) -> ESPnetFullModel:
    """The Whisper itself, to be fine-tuned as a whole."""
    return ESPnetFullModel(backbone, args.langs, tokens)


SYSTEMS: dict[str, Callable[[argparse.Namespace, Backbone, WhisperTokens], AbsLoLEModel]] = {
    "experts": build_experts,
    "mole": build_mole,
    "student": build_student,
    "full": build_full,
}
"""What can be trained."""

"""ESPnet's task for language experts, LoRA MoLE, LoRA KD and full fine-tuning."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.tasks.abs_task import AbsTask, IteratorOptions, optim_classes
from espnet2.train.class_choices import ClassChoices
from espnet2.train.collate_fn import CommonCollateFn
from espnet2.train.preprocessor import AbsPreprocessor
from espnet2.utils.get_default_kwargs import get_default_kwargs
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str2bool

from espnet_lole.config import load_yaml, merge
from espnet_lole.data.kaldi import read_table
from espnet_lole.espnet_model import (
    AbsLoLEModel,
    ESPnetExpertsModel,
    ESPnetFullModel,
    ESPnetMoLEModel,
    ESPnetStudentModel,
)
from espnet_lole.lole.system import STUDENT_INITS, SystemConfig, build_system
from espnet_lole.train.checkpoints import read_checkpoint
from espnet_lole.train.optimizer import ExpertAdamW
from espnet_lole.train.record import training_folder
from espnet_lole.train.sampler import BalancedIterFactory
from espnet_lole.train.specaug import Augment
from espnet_lole.train.targets import IGNORE
from espnet_lole.train.trainer import KDTrainer, LoLETrainer
from espnet_lole.whisper.checkpoint import PRECISIONS, load_config
from espnet_lole.whisper.features import MAX_SAMPLES, MIN_SAMPLES
from espnet_lole.whisper.tokenizer import WhisperTokenizer

system_choices = ClassChoices(
    "system",
    classes={
        "experts": ESPnetExpertsModel,
        "mole": ESPnetMoLEModel,
        "student": ESPnetStudentModel,
        "multilingual": ESPnetStudentModel,
        "full": ESPnetFullModel,
    },
    type_check=AbsLoLEModel,
    default="experts",
)
"""The models that are trained, on what ``build_system`` builds."""
specaug_choices = ClassChoices("specaug", classes={"specaug": SpecAug}, type_check=AbsSpecAug, optional=True)
DEFAULTS = {
    "optim": "adamw",
    "batch_type": "numel",
    "iterator_type": "task",
    "valid_iterator_type": "sequence",
    "best_model_criterion": [["valid", "acc", "max"]],
    "keep_nbest_models": 1,  # an average of several would average A and B apart: mean(B) mean(A) is not mean(B A)
    "use_matplotlib": False,
    "num_att_plot": 0,
    "model_conf": {"extract_feats_in_collect_stats": False},
}
"""Options of ESPnet whose default differs here."""
SYSTEM_DEFAULTS = {
    "experts": {"iterator_type": "sequence", "unused_parameters": True},  # those of languages that a batch lacks
    "mole": {"best_model_criterion": [["valid", "loss", "min"]]},
}
"""The same for one system."""


def build_choice(choices: ClassChoices, args: argparse.Namespace, *parts: Any) -> Any:
    """Build the class that the options choose, from parts and the configuration of its own.

    Raises:
        ValueError: the configuration has unknown keys.
    """
    kind, conf = choices.get_class(getattr(args, choices.name)), getattr(args, f"{choices.name}_conf")
    if unknown := sorted(set(conf) - (known := get_default_kwargs(kind)).keys()):
        raise ValueError(f"expected in {choices.name}_conf keys of {sorted(known)}, got {unknown}")
    return kind(*parts, **conf)


class LoLEPreprocessor(AbsPreprocessor):
    """Converts texts to token ids and language codes to indices.

    Args:
        train: ESPnet's flag.
        languages: the codes of the languages, in order.
        tokenizer: of the backbone.
    """

    def __init__(self, train: bool, languages: Collection[str], tokenizer: WhisperTokenizer) -> None:
        super().__init__(train)
        self.index = {lang: i for i, lang in enumerate(languages)}
        self.tokenizer = tokenizer

    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, np.ndarray]:
        """Prepare one utterance.

        Raises:
            ValueError: its language does not train, or its audio is too short, too long or of several channels.
        """
        lang, speech = data["lang"], data["speech"]
        if lang not in self.index:
            raise ValueError(
                f"{uid}: expected a language of the experts {' '.join(self.index)}, got {lang!r}: correct utt2lang or "
                "--langs"
            )
        if speech.ndim != 1 or not MIN_SAMPLES <= len(speech) <= MAX_SAMPLES:
            raise ValueError(
                f"{uid}: expected 25 ms to 30 s of mono audio at 16 kHz, got shape {speech.shape}: run stages 3 and 4"
            )
        prepared = {"speech": speech.astype(np.float32), "lang": np.array([self.index[lang]], dtype=np.int64)}
        if "text" in data:
            prepared["text"] = np.array(self.tokenizer.encode(data["text"], lang), dtype=np.int64)
        return prepared


class LoLECollateFn(CommonCollateFn):
    """Pads speech with zeros and text with -1; utterances of a language lie together: fewer products."""

    def __init__(self) -> None:
        super().__init__(float_pad_value=0.0, int_pad_value=IGNORE)

    def __call__(
        self, data: Collection[tuple[str, dict[str, np.ndarray]]]
    ) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Return the ids and the tensors of a batch."""
        return super().__call__(sorted(data, key=lambda item: int(item[1]["lang"][0])))


class LoLETask(AbsTask):
    """Trains a system with ESPnet's trainer."""

    num_optimizers: int = 1
    class_choices_list = [system_choices, specaug_choices]
    trainer = LoLETrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of the systems."""
        group = parser.add_argument_group(description="Language experts on Whisper")
        for choices in cls.class_choices_list:
            choices.add_arguments(group)
        group.add_argument("--langs", type=str, nargs="+", default=None, help="languages, an expert each")
        group.add_argument("--backbone", default=None, help="hub name, folder of a transformers Whisper, or .pt file")
        group.add_argument("--pad_to", default="none", help="length of the input: none, +<seconds>s or 30s")
        group.add_argument("--share_30s", type=float, default=0.0, help="share of batches padded to 30 s instead")
        group.add_argument("--precision", default="float32", choices=PRECISIONS, help="of the matrix products")
        group.add_argument(
            "--activation_checkpointing", type=str2bool, default=False, help="compute layers again in the backward pass"
        )
        group.add_argument("--expert_conf", action=NestedDictAction, default={}, help="rank, alpha, dropout, targets")
        group.add_argument("--init_expert", default=None, help="experts: an adapter that they start from")
        group.add_argument("--experts", default=None, help="mole, student: folder of the experts' adapters")
        group.add_argument("--fusion_conf", action=NestedDictAction, default={}, help="mole: L1 and the fusion")
        group.add_argument("--fusion_lr_factor", type=float, default=1.0, help="mole: learning rate of the fusion")
        group.add_argument("--classifier_conf", action=NestedDictAction, default={}, help="mole: language classifier")
        group.add_argument("--init_mole", default=None, help="mole: folder of one of fewer languages to start from")
        group.add_argument("--student_init", default="average", choices=STUDENT_INITS, help="student: its start")
        group.add_argument("--kd_conf", action=NestedDictAction, default={}, help="student: losses of distillation")
        group.add_argument("--lang_temperature", type=float, default=1.0, help="of languages, with iterator_type: task")
        group.add_argument("--model_conf", action=NestedDictAction, default={}, help="unused; ESPnet reads it")
        group.add_argument("--use_preprocessor", type=str2bool, default=True, help="ESPnet's; always true here")

    @classmethod
    def parse_args(cls, cmd: Sequence[str] | None = None) -> argparse.Namespace:
        """Read the command line and its configuration files; later files override earlier ones, key by key.

        Raises:
            ValueError: a file has an unknown key.
        """
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config", nargs="+", default=[])
        first.add_argument("--system", default=None)
        given, options = first.parse_known_args(cmd)
        parser, conf = cls.get_parser(), {}
        for file in given.config:
            values = load_yaml(Path(file))
            if unknown := sorted(set(values) - {action.dest for action in parser._actions}):
                raise ValueError(f"{file}: unknown keys {' '.join(unknown)}; lole_train --help lists those that exist")
            conf = merge(conf, values)
        system = given.system or conf.get("system", "experts")
        parser.set_defaults(**merge(DEFAULTS | SYSTEM_DEFAULTS.get(system, {}), conf))
        args = parser.parse_args(["--system", system, *options])
        args.config = " ".join(given.config) or None
        return args

    @classmethod
    def get_default_config(cls) -> dict[str, Any]:
        """Return the options of the command line, with the defaults of the classes that they choose, to print them."""
        config = {name: value for name, value in vars(cls.parse_args()).items() if name not in cls.exclude_opts()}
        for choices in cls.class_choices_list:
            if kind := choices.get_class(config[choices.name]):
                config[f"{choices.name}_conf"] = get_default_kwargs(kind) | config[f"{choices.name}_conf"]
        return config

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool) -> Callable:
        """Return what makes a batch of utterances."""
        return LoLECollateFn()

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> LoLEPreprocessor:
        """Return the preprocessor of one utterance."""
        return LoLEPreprocessor(train, args.langs, WhisperTokenizer(load_config(args.backbone).vocab_size))

    @classmethod
    def build_task_iter_factory(
        cls, args: argparse.Namespace, iter_options: IteratorOptions, mode: str
    ) -> BalancedIterFactory:
        """Return, for ``iterator_type: task``, batches balanced over the languages."""
        (shape_file,) = iter_options.shape_files
        lang_file = next(path for path, name, _ in iter_options.data_path_and_name_and_type if name == "lang")
        distributed = torch.distributed
        ranks = (distributed.get_rank(), distributed.get_world_size()) if iter_options.distributed else (0, 1)
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
        """Return what an utterance must have."""
        return ("speech", "lang") if inference else ("speech", "text", "lang")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Return what else an utterance may have."""
        return ()

    @classmethod
    def check_required_command_args(cls, args: argparse.Namespace) -> None:
        """Refuse a configuration without a backbone or languages, or that would train otherwise than it says."""
        super().check_required_command_args(args)
        for name in ("backbone", "langs"):
            if not getattr(args, name) and not args.print_config:
                raise ValueError(f"expected --{name}, got none: give it in the config or on the command line")
        if args.specaug_conf and args.specaug is None:
            raise ValueError("specaug_conf without specaug would change nothing: add specaug: specaug, or leave it out")
        if args.system == "experts" and args.optim != "adamw":
            raise ValueError(f"experts train with optim: adamw, one for each expert; got {args.optim!r}: leave it out")

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Train as this process's part, while no other training is in ``args.output_dir``.

        Raises:
            BlockingIOError: another process trains there.
            ValueError: it holds a training of other data, options or weights.
        """
        with training_folder(args):
            super().main_worker(args)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> AbsLoLEModel:
        """Build the system and the model that trains it.

        Raises:
            ValueError: unknown languages, targets or keys of a configuration.
            FileNotFoundError: the backbone or a language's expert is missing.
        """
        # 1. Backbone with adapters
        system = build_system(SystemConfig.parse(vars(args)))
        # 2. Model
        model = build_choice(system_choices, args, system, args.langs)
        # 3. Data augmentation for spectrogram
        if args.specaug is not None:
            model.whisper.augment = Augment(build_choice(specaug_choices, args))
        trained, total = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (0, 1))
        share = f"{trained:,} of {total:,} parameters train ({100 * trained / total:.1f} %)"
        logging.info(f"{share}, languages {' '.join(model.languages)}")
        return model

    @classmethod
    def build_model_from_file(
        cls, config_file: Path | str | None = None, model_file: Path | str | None = None, device: str = "cpu"
    ) -> tuple[AbsLoLEModel, argparse.Namespace]:
        """Return a trained model and its options, without running code that the checkpoint may contain.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the checkpoint is broken, contains more than tensors, or is of another model.
        """
        config_file = Path(model_file).parent / "config.yaml" if config_file is None else Path(config_file)
        args = argparse.Namespace(**load_yaml(config_file))
        model = cls.build_model(args).to(device)
        if model_file is not None:
            model.load_state_dict(read_checkpoint(model_file))
        return model, args

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: AbsLoLEModel) -> list[torch.optim.Optimizer]:
        """Return the optimizer of the trained parameters: for experts one that clips each alone by ``grad_clip``."""
        if isinstance(model, ESPnetExpertsModel):
            return [ExpertAdamW(model.experts.parameters_of_experts(), args.grad_clip, **args.optim_conf)]
        optim_class = optim_classes[args.optim]
        if not isinstance(model, ESPnetMoLEModel):
            return [optim_class([p for p in model.parameters() if p.requires_grad], **args.optim_conf)]
        fusion = [layer.logits for layer in model.mole.frontend.fused.values()]
        groups = [
            {"params": list(model.mole.frontend.classifier.parameters())},
            {"params": fusion, "lr": args.optim_conf["lr"] * args.fusion_lr_factor, "weight_decay": 0.0},
        ]
        return [optim_class(groups, **args.optim_conf)]


class KDTask(LoLETask):
    """Trains a student with distillation."""

    trainer = KDTrainer

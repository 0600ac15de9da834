"""ESPnet's task for LoRA language experts."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from espnet2.tasks.abs_task import AbsTask, optim_classes
from espnet2.train.collate_fn import CommonCollateFn
from espnet2.train.preprocessor import AbsPreprocessor
from espnet2.train.trainer import Trainer
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str2bool

from espnet_lole.backbone.features import MAX_SAMPLES, MIN_SAMPLES
from espnet_lole.backbone.load import PRECISIONS, load_backbone, load_config
from espnet_lole.backbone.tokens import WhisperTokens
from espnet_lole.espnet_model import IGNORE, ESPnetExpertModel, describe
from espnet_lole.experts.bank import ExpertBank, ExpertConfig
from espnet_lole.experts.optimizer import ExpertAdamW

optim_classes["expert_adamw"] = ExpertAdamW  # ESPnet looks optimizers up here


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


class LoLETask(AbsTask):
    """Trains language experts with ESPnet's trainer."""

    num_optimizers: int = 1
    class_choices_list: list = []
    trainer = Trainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of the backbone and of the experts."""
        group = parser.add_argument_group(description="LoRA language experts")
        group.add_argument("--backbone", type=str, default=None, help="hub name or folder of a transformers Whisper")
        group.add_argument("--window", type=str, default="short", choices=["short", "30s"], help="length of the input")
        group.add_argument("--precision", type=str, default="float32", choices=PRECISIONS, help="of the matrix products")
        group.add_argument("--langs", type=str, nargs="+", default=None, help="languages, an expert each")
        group.add_argument("--expert_conf", action=NestedDictAction, default={}, help="rank, alpha, dropout, targets")
        group.add_argument("--model_conf", action=NestedDictAction, default={}, help="unused; ESPnet reads it")
        group.add_argument("--use_preprocessor", type=str2bool, default=True, help="ESPnet's; always true here")

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool) -> Callable:
        """Pad speech with zeros and text with -1."""
        return CommonCollateFn(float_pad_value=0.0, int_pad_value=IGNORE)

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> LoLEPreprocessor:
        """The preprocessor of one utterance."""
        return LoLEPreprocessor(train, args.langs, WhisperTokens(load_config(args.backbone).vocab_size))

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
    def build_model(cls, args: argparse.Namespace) -> ESPnetExpertModel:
        """The frozen backbone with an expert for each language.

        Raises:
            ValueError: unknown languages, targets or keys of expert_conf.
        """
        backbone = load_backbone(args.backbone, args.window, args.precision)
        tokens = WhisperTokens(backbone.model.config.vocab_size)
        config = expert_config(args.expert_conf)
        bank = ExpertBank(backbone.model, args.langs, config, getattr(args, "seed", 0))
        model = ESPnetExpertModel(backbone.requires_grad_(False), bank, tokens)
        for layer in bank.layers.values():
            layer.lora_A.requires_grad_(True)
            layer.lora_B.requires_grad_(True)
        logging.info(describe(model, bank.languages))
        return model

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """The optimizer of the trained parameters; ``grad_clip`` goes to it, because each expert is clipped alone.

        Raises:
            ValueError: another optimizer than ``expert_adamw``, which would move experts that are not in a batch.
        """
        if args.optim != "expert_adamw":
            raise ValueError(f"expected optim: expert_adamw, got {args.optim!r}: it would also move experts absent from a batch")
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = ExpertAdamW(trained, **{"max_grad_norm": args.grad_clip, **args.optim_conf})
        args.grad_clip = math.inf
        return [optimizer]


def expert_config(conf: dict[str, Any]) -> ExpertConfig:
    """``expert_conf`` of a config.

    Raises:
        ValueError: an unknown key.
    """
    known = ExpertConfig.__dataclass_fields__
    if unknown := sorted(set(conf) - set(known)):
        raise ValueError(f"expected in expert_conf {sorted(known)}, got {unknown}")
    return ExpertConfig(**conf)

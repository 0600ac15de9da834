#!/usr/bin/env python3
"""Decode with ESPnet's own ``asr_inference``; write hypotheses and resources as those of the other systems."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import soundfile
import torch
from espnet2.bin import asr_inference
from espnet2.tasks.asr import ASRTask

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.config import load_yaml
from espnet_lole.data.kaldi import NO_LANGUAGE, read_table, write_table
from espnet_lole.evaluation.decodings import DECODING, describe_decoding, write_decoding
from espnet_lole.evaluation.resources import peak_memory_gb, write_resources
from espnet_lole.inference.transcriber import count_parameters
from espnet_lole.ownership import check_output_file
from espnet_lole.train.espnet_whisper import PROMPT, register_backbone
from espnet_lole.train.trainer import write_training_resources

TAG = re.compile(r"\s*\[([a-z]+)\]\s*")
"""The language before a text of ESPnet's Conformer."""
LANGUAGE_TOKEN = re.compile(r"<\|([a-z]{2,3})\|>")


def get_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--asr_model_file", type=Path, required=True, help="checkpoint of asr_train; config.yaml is beside it"
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML of asr_inference")
    parser.add_argument("--test_dirs", type=Path, nargs="+", required=True, help="formatted test sets, dump/raw/<set>")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="<output_dir>_<scenario> gets a folder per test set"
    )
    parser.add_argument(
        "--scenarios",
        nargs="+",
        default=["agnostic"],
        choices=["aware", "agnostic"],
        help="whether the language is given, which only Whisper can be, or predicted; default: agnostic",
    )
    parser.add_argument("--ngpu", type=int, default=0)
    return parser


class DecodingTimer(logging.Handler):
    """Sums the seconds between the log lines that ``calculate_rtf.py`` of ESPnet's recipes takes for the decoding."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self.started = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Start at an utterance's length, stop at its best hypothesis."""
        message = record.getMessage()
        if message.startswith("speech length: "):
            self.started = record.created
        elif message.startswith("best hypo: "):
            self.seconds += record.created - self.started


def decode(args: argparse.Namespace) -> None:
    """Decode all test sets in each scenario.

    Raises:
        ValueError: an utterance is in two test sets, a scenario is none of the model's, or a file of something else
            would be replaced.
        OSError: a file cannot be read or written.
    """
    outputs = {scenario: args.output_dir.with_name(f"{args.output_dir.name}_{scenario}") for scenario in args.scenarios}
    for folder in (output / test_dir.name for output in outputs.values() for test_dir in args.test_dirs):
        check_output_file(folder / "text", overwrite=(folder / "rtf").is_file())  # an earlier decoding
    training = load_yaml(args.asr_model_file.parent / "config.yaml")
    if training["encoder"] != "whisper" and "aware" in outputs:
        raise ValueError("only a Whisper can be given the language: leave out --scenarios aware")
    register_backbone(training)
    wavs, langs = (join_tables(args.test_dirs, name) for name in ("wav.scp", "utt2lang"))
    record = describe_decoding([args.asr_model_file], args.test_dirs)
    parameters = write_training(args.asr_model_file)
    timer = DecodingTimer()
    logging.getLogger().addHandler(timer)
    for scenario, output in outputs.items():
        (output / DECODING).unlink(missing_ok=True)  # hypotheses of two decodings are not scored as one
        timer.seconds = 0.0
        if training["encoder"] != "whisper":
            texts, predicted = split_tags(run_inference(args, output / "asr_inference", wavs))
        elif scenario == "aware":
            texts, predicted = decode_aware(args, output / "asr_inference", wavs, langs), None
        else:
            texts, predicted = decode_agnostic(args, wavs, training["token_list"])
        write_sets(args.test_dirs, output, texts, predicted, timer.seconds / seconds_of(args.test_dirs))
        memory = peak_memory_gb(args.ngpu > 0)
        write_resources(output, str(args.config), parameters=parameters, memory_gb=memory)
        write_decoding(output, record)


def run_inference(args: argparse.Namespace, work: Path, wavs: Mapping[str, str], *options: str) -> dict[str, str]:
    """Return the texts that ``asr_inference`` decodes from these utterances in the folder ``work``."""
    write_table(work / "wav.scp", wavs)
    files = ["--asr_train_config", args.asr_model_file.parent / "config.yaml", "--asr_model_file", args.asr_model_file]
    files += ["--key_file", work / "wav.scp", "--data_path_and_name_and_type", f"{work / 'wav.scp'},speech,sound"]
    files += ["--config", args.config, "--ngpu", args.ngpu, "--output_dir", work]
    asr_inference.main([*map(str, files), *options])
    return read_table(work / "1best_recog" / "text")


def decode_aware(
    args: argparse.Namespace, work: Path, wavs: Mapping[str, str], langs: Mapping[str, str]
) -> dict[str, str]:
    """Return the texts of ESPnet's Whisper, which takes one language in each call of ``asr_inference``."""
    texts: dict[str, str] = {}
    for lang in sorted(set(langs.values())):
        part = {utt: wav for utt, wav in wavs.items() if langs[utt] == lang}
        texts |= run_inference(args, work / lang, part, "--lang_prompt_token", PROMPT.format(lang=lang))
    return texts


@torch.no_grad()
def decode_agnostic(
    args: argparse.Namespace, wavs: Mapping[str, str], tokens: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return texts and languages of ESPnet's Whisper after ``<|startoftranscript|>`` alone.

    ``Speech2Text`` of ``asr_inference`` predicts the language there, which is no option of the command.
    """
    speech2text = asr_inference.Speech2Text(
        args.asr_model_file.parent / "config.yaml",
        args.asr_model_file,
        device="cuda" if args.ngpu > 0 else "cpu",
        lid_prompt=True,
        **load_yaml(args.config),
    )
    texts, predicted = {}, {}
    for utt, wav in wavs.items():
        texts[utt], _, ids, _ = speech2text(soundfile.read(wav, dtype="float32")[0])[0]
        language = LANGUAGE_TOKEN.fullmatch(tokens[ids[0]]) if ids else None
        predicted[utt] = language[1] if language else NO_LANGUAGE
    return texts, predicted


def split_tags(hypotheses: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split hypotheses into texts and the languages that their tags predict."""
    tags = {utt: TAG.match(text) for utt, text in hypotheses.items()}
    predicted = {utt: tag[1] if tag else NO_LANGUAGE for utt, tag in tags.items()}
    return {utt: TAG.sub(" ", text).strip() for utt, text in hypotheses.items()}, predicted


def join_tables(folders: Sequence[Path], name: str) -> dict[str, str]:
    """Join a table of several sets.

    Raises:
        ValueError: an utterance is in two of them.
    """
    joined: dict[str, str] = {}
    for folder in folders:
        table = read_table(folder / name)
        if twice := sorted(joined.keys() & table):
            raise ValueError(f"expected each utterance in one test set, got {twice[:3]} again in {folder}: rename them")
        joined |= table
    return joined


def seconds_of(folders: Sequence[Path]) -> float:
    """Return the seconds of audio of formatted sets."""
    return (
        sum(int(samples) for folder in folders for samples in read_table(folder / "utt2num_samples").values()) / 16000
    )


def write_sets(
    folders: Sequence[Path],
    output: Path,
    texts: Mapping[str, str],
    predicted: Mapping[str, str] | None,
    rtf: float,
) -> None:
    """Write the hypotheses and predicted languages of each set to its folder in ``output``, with the real-time factor.

    Raises:
        OSError: a file cannot be written.
    """
    for folder in folders:
        utts, out = read_table(folder / "wav.scp"), output / folder.name
        write_table(out / "text", {utt: texts[utt] for utt in utts})
        if predicted is not None:
            write_table(out / "lang", {utt: predicted[utt] for utt in utts})
        write_text_atomic(out / "rtf", f"{rtf:.6f}\n")


def write_training(checkpoint: Path) -> int:
    """Write ``resources.json`` of a training, and return the number of its model's parameters."""
    model, training = ASRTask.build_model_from_file(None, checkpoint)
    frozen = tuple(f"{part}." for part in training.freeze_param)  # asr_train adds the LoRA after it has frozen these
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or not name.startswith(frozen))
    write_training_resources(checkpoint.parent, model)
    return count_parameters(model)


def main(cmd: list[str] | None = None) -> None:
    """Decode; a mistake is one line."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level="INFO", format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s")
    try:
        decode(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Decode with ESPnet's own ``asr_inference``; write hypotheses and resources as those of the other systems."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.data.kaldi import read_table
from espnet_lole.evaluation.decodings import describe_decoding, write_decoding
from espnet_lole.evaluation.resources import peak_memory_gb, write_resources
from espnet_lole.inference.transcriber import count_parameters
from espnet_lole.ownership import check_output_file


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--asr_model_file", type=Path, required=True, help="checkpoint of asr_train; config.yaml is beside it"
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML of asr_inference")
    parser.add_argument("--test_dirs", type=Path, nargs="+", required=True, help="formatted test sets, dump/raw/<set>")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets a folder for each test set")
    parser.add_argument("--ngpu", type=int, default=0)
    return parser


def decode(args: argparse.Namespace) -> None:
    """Run ``asr_inference`` once over all test sets; write ``<output_dir>/<set>/{text,rtf}`` and the resources of both.

    The real-time factor counts the loading of the model too, which is inside ``asr_inference``.

    Raises:
        ValueError: an utterance is in two test sets, or a file of something else would be replaced.
    """
    from espnet2.bin import asr_inference
    from espnet2.tasks.asr import ASRTask

    from espnet_lole.train.trainer import write_training_resources

    for folder in (args.output_dir / test_dir.name for test_dir in args.test_dirs):
        check_output_file(folder / "text", overwrite=(folder / "rtf").is_file())  # an earlier decoding
    work = args.output_dir / "asr_inference"
    join_sets(args.test_dirs, work / "wav.scp")
    options = [
        "--asr_train_config",
        args.asr_model_file.parent / "config.yaml",
        "--asr_model_file",
        args.asr_model_file,
    ]
    options += ["--config", args.config, "--ngpu", args.ngpu, "--output_dir", work]
    options += ["--key_file", work / "wav.scp", "--data_path_and_name_and_type", f"{work / 'wav.scp'},speech,sound"]
    record = describe_decoding([args.asr_model_file], args.test_dirs)
    started = time.perf_counter()
    asr_inference.main([str(option) for option in options])
    rtf = (time.perf_counter() - started) / seconds_of(args.test_dirs)
    split_sets(work / "1best_recog" / "text", args.test_dirs, args.output_dir, rtf)
    memory = peak_memory_gb(args.ngpu > 0)
    model, _ = ASRTask.build_model_from_file(None, args.asr_model_file)
    write_training_resources(args.asr_model_file.parent, model)
    write_resources(args.output_dir, str(args.config), parameters=count_parameters(model), memory_gb=memory)
    write_decoding(args.output_dir, record)


def join_sets(folders: Sequence[Path], file: Path) -> None:
    """Write one ``wav.scp`` of several sets.

    Raises:
        ValueError: an utterance is in two of them.
    """
    joined: dict[str, str] = {}
    for folder in folders:
        wavs = read_table(folder / "wav.scp")
        if twice := sorted(joined.keys() & wavs):
            raise ValueError(f"expected each utterance in one test set, got {twice[:3]} again in {folder}: rename them")
        joined |= wavs
    write_text_atomic(file, "".join(f"{utt} {wav}\n" for utt, wav in sorted(joined.items())))


def seconds_of(folders: Sequence[Path]) -> float:
    """Seconds of audio of formatted sets."""
    return (
        sum(int(samples) for folder in folders for samples in read_table(folder / "utt2num_samples").values()) / 16000
    )


def split_sets(text: Path, folders: Sequence[Path], output: Path, rtf: float) -> None:
    """Write the hypotheses of each set to ``<output>/<set>/text``, and the real-time factor beside them."""
    hypotheses = read_table(text)
    for folder in folders:
        lines = [f"{utt} {hypotheses[utt]}".rstrip() + "\n" for utt in read_table(folder / "wav.scp")]
        write_text_atomic(output / folder.name / "text", "".join(lines))
        write_text_atomic(output / folder.name / "rtf", f"{rtf:.6f}\n")


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    try:
        decode(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

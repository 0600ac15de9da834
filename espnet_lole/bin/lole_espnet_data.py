#!/usr/bin/env python3
"""Prepare what ESPnet's own models train on: texts with language tags and a token list, or prompts and a Whisper."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import sentencepiece
from espnet2.bin import tokenize_text

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.data.kaldi import read_table, write_table
from espnet_lole.train.espnet_whisper import PROMPT
from espnet_lole.whisper.checkpoint import load_config, load_whisper
from espnet_lole.whisper.openai import write_checkpoint
from espnet_lole.whisper.tokenizer import WhisperTokenizer

COPIED = ("wav.scp", "utt2lang", "utt2num_samples")
MELS = 80
"""Mel bins of the Whispers that ESPnet's own classes load, which are those before large-v3."""


def get_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", type=Path, nargs="+", required=True, help="formatted sets; the first one trains")
    parser.add_argument("--dst", type=Path, nargs="+", required=True, help="directory to write for each of --src")
    parser.add_argument("--token_type", choices=["bpe", "char"], default="bpe", help="bpe: sentencepiece's unigrams")
    parser.add_argument("--nbpe", type=int, default=30, help="number of tokens of sentencepiece")
    parser.add_argument("--token_dir", type=Path, help="folder to write: tokens.txt, the model of sentencepiece")
    parser.add_argument("--backbone", help="Whisper to train instead: a name on the hub, a folder, or a .pt file")
    parser.add_argument("--pt", type=Path, help="file to write the backbone to, in the form of openai/whisper")
    return parser


def prepare_tagged(args: argparse.Namespace) -> None:
    """Write sets whose texts begin with ``[lang]``, and the token list of the first one, as ESPnet's stage 5.

    Raises:
        ValueError: the texts do not give so many tokens, or need more.
        OSError: a file cannot be read or written.
    """
    for src, dst in zip(args.src, args.dst, strict=True):
        langs = read_table(src / "utt2lang")
        texts = {utt: f"[{langs[utt]}] {text}" for utt, text in read_table(src / "text").items()}
        write_set(src, dst, text=texts)
    tags = sorted({f"[{lang}]" for lang in read_table(args.src[0] / "utt2lang").values()})
    with atomic_folder(args.token_dir) as folder:
        (folder / "nlsyms.txt").write_text("".join(f"{tag}\n" for tag in tags), encoding="utf-8")
        if args.token_type == "bpe":
            train_bpe(read_table(args.dst[0] / "text").values(), args.nbpe, tags, folder)
        else:
            options = ["--non_linguistic_symbols", folder / "nlsyms.txt", "--write_vocabulary", "true", "--field", "2-"]
            symbols = ["--add_symbol", "<blank>:0", "--add_symbol", "<unk>:1", "--add_symbol", "<sos/eos>:-1"]
            files = ["--input", args.dst[0] / "text", "--output", folder / "tokens.txt", "--token_type", "char"]
            tokenize_text.main([str(option) for option in [*options, *symbols, *files]])


def train_bpe(texts: Collection[str], size: int, tags: Sequence[str], folder: Path) -> None:
    """Train a model of sentencepiece with the options of ``asr.sh``; write it with its token list.

    Raises:
        ValueError: the texts do not give so many tokens, or need more.
    """
    (folder / "train.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "train.txt"),
            vocab_size=size,
            model_type="unigram",
            model_prefix=str(folder / "bpe"),
            character_coverage=1.0,
            input_sentence_size=100000000,
            user_defined_symbols=list(tags),
        )
    except RuntimeError as error:
        raise ValueError(f"--nbpe {size} does not fit the training texts: {str(error).rpartition('] ')[2]}") from error
    pieces = [line.split()[0] for line in (folder / "bpe.vocab").read_text(encoding="utf-8").splitlines()]
    tokens = ["<blank>", "<unk>", *pieces[3:], "<sos/eos>"]  # sentencepiece begins with <unk>, <s> and </s>
    (folder / "tokens.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")


def prepare_prompts(args: argparse.Namespace) -> None:
    """Write sets with the prompts of ESPnet's multilingual Whisper, and the backbone in the form of openai/whisper.

    Raises:
        ValueError: the backbone or a language is none that ESPnet's Whisper has.
        OSError: a file cannot be read or written.
    """
    config = load_config(args.backbone)
    tokenizer = WhisperTokenizer(config.vocab_size)
    if config.num_mel_bins != MELS:
        raise ValueError(
            f"ESPnet's Whisper takes {MELS} mel bins, {args.backbone} has {config.num_mel_bins}: take a "
            "Whisper before large-v3, or leave espnet_whisper out"
        )
    for src, dst in zip(args.src, args.dst, strict=True):
        langs = read_table(src / "utt2lang")
        for lang in sorted(set(langs.values())):
            tokenizer.language(lang)
        prompts = {utt: PROMPT.format(lang=lang) for utt, lang in langs.items()}
        write_set(src, dst, text=read_table(src / "text"), prompt=prompts)
    write_checkpoint(load_whisper(args.backbone).model, args.pt)


def write_set(src: Path, dst: Path, **tables: dict[str, str]) -> None:
    """Write a formatted set anew, with these tables."""
    for name in COPIED:
        write_table(dst / name, read_table(src / name))
    for name, table in tables.items():
        write_table(dst / name, table)


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    try:
        (prepare_prompts if args.backbone else prepare_tagged)(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

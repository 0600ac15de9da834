"""Make the embedded corpus ``lole_mini``: a Kaldi directory for each language and set, the same at every run."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path

from espnet_lole.data.audio import write_audio
from espnet_lole.data.kaldi import atomic_dir, spk2utt, write_table
from lole_mini.acoustics import SAMPLE_RATE
from lole_mini.sentences import LANGUAGES
from lole_mini.speech import split_texts, utterances

LOW_RESOURCE = ("it", "tr")
SPEAKERS = {"train": 45, "dev": 4, "test": 6}


def sizes(lang: str, scale: float) -> dict[str, int]:
    """Utterances of each set; the low-resource languages have half of the training data."""
    train = 105 if lang in LOW_RESOURCE else 210
    return {split: max(2, round(n * scale)) for split, n in {"train": train, "dev": 16, "test": 40}.items()}


def prepare_language(lang: str, output: Path, scale: float) -> tuple[str, dict[str, float]]:
    """Write ``<output>/{train,dev,test}_<lang>``; returns the language and the minutes of each set."""
    minutes = {}
    for split, texts in split_texts("market", lang, sizes(lang, scale)).items():
        final = (output / f"{split}_{lang}").absolute()
        tables: dict[str, dict[str, str]] = {name: {} for name in ("wav.scp", "text", "utt2spk", "utt2lang")}
        seconds = 0.0
        with atomic_dir(final) as made:
            (made / "wav").mkdir()
            for i, utterance in enumerate(utterances("market", split, lang, texts, SPEAKERS[split])):
                speaker = f"{lang}_{split}_{utterance.speaker}"
                utt = f"{speaker}_{i:04d}"
                write_audio(made / "wav" / f"{utt}.wav", utterance.speech)
                row = (str(final / "wav" / f"{utt}.wav"), utterance.text, speaker, lang)
                for table, value in zip(tables.values(), row, strict=True):
                    table[utt] = value
                seconds += len(utterance.speech) / SAMPLE_RATE
            for name, table in tables.items():
                write_table(made / name, table)
            write_table(made / "spk2utt", spk2utt(tables["utt2spk"]))
        minutes[split] = seconds / 60
    return lang, minutes


def in_own_process(lang: str, output: Path, scale: float) -> tuple[str, dict[str, float]]:
    """``prepare_language`` in a fresh process: eSpeak keeps its state, so an utterance depends on those before it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(prepare_language, lang, output, scale).result()


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("data/lole_mini"))
    parser.add_argument("--langs", nargs="+", default=list(LANGUAGES), choices=LANGUAGES)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the utterances to make")
    parser.add_argument("--nj", type=int, default=2, help="processes")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    todo = [c for c in args.langs if not all((args.output / f"{s}_{c}" / "wav.scp").exists() for s in SPEAKERS)]
    if done := [lang for lang in args.langs if lang not in todo]:
        print(f"lole_mini: already there: {' '.join(done)}")
    started = time.perf_counter()
    try:
        with ThreadPoolExecutor(args.nj) as pool:
            jobs = [pool.submit(in_own_process, lang, args.output, args.scale) for lang in todo]
            for n, job in enumerate(as_completed(jobs), 1):
                lang, minutes = job.result()
                left = (time.perf_counter() - started) / n * (len(todo) - n)
                told = ", ".join(f"{split} {m:.1f} min" for split, m in minutes.items())
                print(f"lole_mini: {lang}: {told}; {left:.0f} s left", flush=True)
    except OSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

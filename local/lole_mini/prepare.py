"""Make the embedded corpus `lole_mini`: a Kaldi directory for each language and set, the same in every run."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.data.audio import write_audio
from espnet_lole.data.kaldi import KaldiDir
from lole_mini.acoustics import SAMPLE_RATE
from lole_mini.sentences import LANGUAGES
from lole_mini.speech import split_texts, utterances

LOW_RESOURCE = ("it", "tr")
SPEAKERS = {"train": 45, "dev": 4, "test": 6}


def sizes(lang: str, scale: float) -> dict[str, int]:
    """Return the number of utterances of each set; the low-resource languages have half of the training data."""
    train = 105 if lang in LOW_RESOURCE else 210
    return {split: max(2, round(n * scale)) for split, n in {"train": train, "dev": 16, "test": 40}.items()}


def prepare_language(lang: str, output: Path, scale: float) -> tuple[str, dict[str, float]]:
    """Write `<output>/{train,dev,test}_<lang>`; return the language and the minutes of each set."""
    minutes = {}
    for split, texts in split_texts("market", lang, sizes(lang, scale)).items():
        final = (output / f"{split}_{lang}").absolute()
        kaldi = KaldiDir(final)
        seconds = 0.0
        with atomic_folder(final) as made:
            (made / "wav").mkdir()
            for i, utterance in enumerate(utterances("market", split, lang, texts, SPEAKERS[split])):
                speaker = f"{lang}_{split}_{utterance.speaker}"
                utt = f"{speaker}_{i:04d}"
                write_audio(made / "wav" / f"{utt}.wav", utterance.speech)
                kaldi.wav[utt] = str(final / "wav" / f"{utt}.wav")
                kaldi.text[utt], kaldi.utt2spk[utt], kaldi.utt2lang[utt] = utterance.text, speaker, lang
                seconds += len(utterance.speech) / SAMPLE_RATE
            kaldi.write(made)
        minutes[split] = seconds / 60
    return lang, minutes


def prepare_in_process(lang: str, output: Path, scale: float) -> tuple[str, dict[str, float]]:
    """Run `prepare_language` in a fresh process, as eSpeak's speech depends on what the process has spoken before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(prepare_language, lang, output, scale).result()


def get_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("data/lole_mini"))
    parser.add_argument("--langs", nargs="+", default=list(LANGUAGES), choices=LANGUAGES)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the utterances to make")
    parser.add_argument("--nj", type=int, default=2, help="processes")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(cmd)
    done = [lang for lang in args.langs if all((args.output / f"{s}_{lang}" / "wav.scp").exists() for s in SPEAKERS)]
    todo = [lang for lang in args.langs if lang not in done]
    if done:
        print(f"lole_mini: {' '.join(done)}: already made")
    started = time.perf_counter()
    try:
        with ThreadPoolExecutor(args.nj) as pool:
            jobs = [pool.submit(prepare_in_process, lang, args.output, args.scale) for lang in todo]
            for n, job in enumerate(as_completed(jobs), 1):
                lang, minutes = job.result()
                left = (time.perf_counter() - started) / n * (len(todo) - n)
                durations = ", ".join(f"{split} {m:.1f} min" for split, m in minutes.items())
                print(f"lole_mini: {lang}: {durations}; {left:.0f} s left", flush=True)
    except OSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

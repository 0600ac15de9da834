"""Error rate of transcripts against references, both normalised as in Whisper's paper.

The files have a line an utterance: its name, a tab or a space, and its text, as `lole transcribe a.wav b.wav ...` prints it
and as in Kaldi's text; of a path, the file's name without ending counts.

Examples:
  lole transcribe test/*.wav --model DIR --lang de > found.txt
  lole score --ref test/text --hyp found.txt --lang de
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--ref", type=Path, required=True, help="what was said")
    parser.add_argument("--hyp", type=Path, required=True, help="what was found")
    parser.add_argument("--lang", required=True, help="language of the references; those without spaces count characters")
    parser.add_argument("--metric", choices=["wer", "cer"], help="by word or by character; default: by the language")


def run(args: argparse.Namespace) -> None:
    """Print the error rate.

    Raises:
        ValueError: an utterance is missing on one side, or is there twice.
        FileNotFoundError: a file is not there.
    """
    from espnet_lole.evaluation.normalize import as_scored, cer_languages, normalize, unit_of
    from espnet_lole.evaluation.rates import count

    ref, hyp = _read(args.ref), _read(args.hyp)
    if differ := sorted(set(ref) ^ set(hyp)):
        raise ValueError(
            f"expected the same utterances in {args.ref} and {args.hyp}, got {len(differ)} in one alone: {differ[:3]}"
        )
    by_character = cer_languages()
    metric = args.metric or unit_of("error", args.lang, by_character)
    pairs = [tuple(as_scored(normalize(of[utt], args.lang), args.lang, metric, by_character) for of in (ref, hyp)) for utt in ref]
    found = count([r for r, _ in pairs], [h for _, h in pairs], metric)
    print(
        f"{metric} {found.error:.2f} %: {found.substitutions} substitutions, {found.deletions} deletions, {found.insertions} "
        f"insertions in {found.units} {'characters' if metric == 'cer' else 'words'} of {found.sentences} utterances"
    )


def _read(file: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        name, _, text = line.partition("\t") if "\t" in line else line.partition(" ")
        utt = Path(name).stem
        if utt in found:
            raise ValueError(f"expected each utterance once in {file}, got {utt!r} again")
        found[utt] = text
    return found

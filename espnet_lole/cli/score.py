"""Error rate of transcripts against references, both normalised as in Whisper's paper.

The files have one line for each utterance: its name, a tab or a space, and its text, as in the output of
`lole transcribe a.wav b.wav ...` and in Kaldi's text. The name of a path is the file's name without its ending.

Examples:
  lole transcribe test/*.wav --model DIR --lang de > hypotheses.txt
  lole score --ref test/text --hyp hypotheses.txt --lang de
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--ref", type=Path, required=True, help="references")
    parser.add_argument("--hyp", type=Path, required=True, help="transcripts")
    parser.add_argument("--lang", required=True, help="language of the references")
    parser.add_argument(
        "--metric", choices=["wer", "cer"], help="default: cer for languages written without spaces, else wer"
    )


def run(args: argparse.Namespace) -> None:
    """Print the error rate.

    Raises:
        ValueError: an utterance is missing on one side, or occurs twice.
        FileNotFoundError: a file does not exist.
    """
    from espnet_lole.evaluation.normalize import wer_or_cer
    from espnet_lole.evaluation.rates import count, make_pairs

    refs, metric = read_texts(args.ref), args.metric or wer_or_cer(args.lang)
    counts = count(make_pairs(refs, read_texts(args.hyp), dict.fromkeys(refs, args.lang), args.hyp), metric)
    print(
        f"{metric} {counts.error_rate:.2f} %: {counts.substitutions} substitutions, {counts.deletions} deletions, "
        f"{counts.insertions} insertions in {counts.units} {'characters' if metric == 'cer' else 'words'} of "
        f"{counts.sentences} utterances"
    )


def read_texts(file: Path) -> dict[str, str]:
    """Read texts by utterance from Kaldi's text or from the output of `lole transcribe`, where a tab ends the path.

    Raises:
        ValueError: an utterance occurs twice.
        FileNotFoundError: the file does not exist.
    """
    from espnet_lole.data.kaldi import read_table

    lines = [line.partition("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    named = [(name, text) for name, tab, text in lines] if all(tab for _, tab, _ in lines) else read_table(file).items()
    texts: dict[str, str] = {}
    for name, text in named:
        utt = Path(name).stem
        if utt in texts:
            raise ValueError(f"{file}: {utt!r} occurs twice; folder and ending do not distinguish utterances")
        texts[utt] = text
    return texts

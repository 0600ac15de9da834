"""Error rate of transcripts against references, both normalised in the same manner.

The files have one line for each utterance: its name, a tab or a space, and its text, as in the output of
`lole transcribe a.wav b.wav ...` and in Kaldi's text. If the names of the two files differ, folders and audio endings
such as .wav are left out.

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
        "--normalize",
        default="whisper_marks",
        help="text normalisation: whisper; whisper_marks (default), where vowel signs and other marks belong to their "
        "word; none; or a cleaner of ESPnet such as tacotron",
    )
    parser.add_argument(
        "--metric", choices=["wer", "cer"], help="default: cer for languages written without spaces, else wer"
    )


def run(args: argparse.Namespace) -> None:
    """Print the error rate.

    Raises:
        ValueError: the language is none of Whisper's, there is no such normalisation, or an utterance is missing on
            one side or occurs twice.
        FileNotFoundError: a file does not exist.
    """
    from espnet_lole.data.kaldi import read_transcripts
    from espnet_lole.evaluation.normalize import find_normalizer, wer_or_cer
    from espnet_lole.evaluation.rates import count, make_pairs
    from espnet_lole.languages import find_language

    lang = find_language(args.lang, "--lang")
    refs, hyps = (read_transcripts(file) for file in (args.ref, args.hyp))
    if refs.keys() != hyps.keys():
        refs, hyps = (read_transcripts(file, by_name=True) for file in (args.ref, args.hyp))
    metric = args.metric or wer_or_cer(lang)
    pairs = make_pairs(refs, hyps, dict.fromkeys(refs, lang), args.hyp, find_normalizer(args.normalize))
    counts = count(pairs, metric)
    empty = f"; {counts.empty} have no reference, and their hypotheses are insertions" if counts.empty else ""
    print(
        f"{metric} {counts.error_rate:.2f} %: {counts.substitutions} substitutions, {counts.deletions} deletions, "
        f"{counts.insertions} insertions in {counts.units} {'characters' if metric == 'cer' else 'words'} of "
        f"{counts.sentences} utterances{empty}"
    )

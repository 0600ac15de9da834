"""Word and character error rates of decoded test sets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from espnet_lole.data.kaldi import read_table
from espnet_lole.evaluation.normalize import Normalizer, normalize, units, wer_or_cer
from espnet_lole.languages import check_language

METRICS = ("wer", "cer")


def format_percent(value: float) -> str:
    """Write a percentage with one decimal; halves are rounded up, as by sclite."""
    return f"{math.floor(10 * value + 0.5) / 10:.1f}"


@dataclass(frozen=True)
class Counts:
    """Sums over utterances; two of them add up.

    Attributes:
        sentences: scored utterances.
        units: words or characters of their references.
        correct: units recognised.
        substitutions: units replaced.
        deletions: units left out.
        insertions: units added.
        sentence_errors: utterances with any error.
        empty: utterances without a reference after normalisation; all of their hypothesis is inserted, as by sclite.
    """

    sentences: int = 0
    units: int = 0
    correct: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    sentence_errors: int = 0
    empty: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Add field by field."""
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def error_rate(self) -> float:
        """(substitutions + deletions + insertions) / units, in percent; can exceed 100."""
        return 100 * self.errors / self.units

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def percentages(self) -> tuple[float, ...]:
        """Corr, Sub, Del, Ins, Err and S.Err of ESPnet's tables."""
        counts = (self.correct, self.substitutions, self.deletions, self.insertions)
        return (
            *(100 * count / self.units for count in counts),
            self.error_rate,
            100 * self.sentence_errors / self.sentences,
        )


@dataclass(frozen=True)
class Pair:
    """A normalised reference and hypothesis; ``lang`` is the reference's language, ``speaker`` that of the audio."""

    utt: str
    lang: str
    ref: str
    hyp: str
    speaker: str = ""

    def units(self, metric: str) -> tuple[list[str], list[str]]:
        """Return the words (``wer``) or characters (``cer``) of reference and hypothesis."""
        return units(self.ref, self.lang, metric), units(self.hyp, self.lang, metric)


@dataclass
class SetScore:
    """The scores of a system on a test set.

    Attributes:
        name: the test set.
        counts: ``wer``, ``cer`` or ``wer_or_cer`` -> language -> counts.
        pairs: its references and hypotheses.
        rtf: real-time factor, if the decoding wrote one.
        confusion: true language -> predicted language -> utterances, if the system predicts it.
    """

    name: str
    counts: dict[str, dict[str, Counts]] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    rtf: float | None = None
    confusion: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def languages(self) -> list[str]:
        """Languages of the references, in their order."""
        return list(self.counts["wer"])


def make_pairs(
    refs: Mapping[str, str],
    hyps: Mapping[str, str],
    langs: Mapping[str, str],
    where: Path,
    normalizer: Normalizer = normalize,
) -> list[Pair]:
    """Normalise and pair texts.

    Args:
        refs: utterance -> reference.
        hyps: utterance -> hypothesis.
        langs: utterance -> language of the reference.
        where: file or folder of the hypotheses, for error messages.
        normalizer: normalises references and hypotheses.

    Returns:
        A pair for each reference.

    Raises:
        ValueError: an utterance lacks its hypothesis, reference or language; a language is none of Whisper's; or all
            references of a language are empty.
    """
    _require_all(refs, hyps, "hypothesis", where)
    _require_all(hyps, refs, "reference", where)
    _require_all(refs, langs, "language", where)
    for lang in {langs[utt] for utt in refs}:
        check_language(lang, where)
    pairs = [
        Pair(utt, langs[utt], normalizer(ref, langs[utt]), normalizer(hyps[utt], langs[utt]))
        for utt, ref in refs.items()
    ]
    if not pairs:
        raise ValueError(f"{where}: nothing to score, as there is no reference")
    if empty := {pair.lang for pair in pairs} - {pair.lang for pair in pairs if pair.ref}:
        raise ValueError(f"{where}: all references of {' '.join(sorted(empty))} are empty after normalisation")
    return pairs


def _require_all(utts: Collection[str], table: Collection[str], what: str, where: Path) -> None:
    """Raise a ``ValueError`` with the number and the first ids of the utterances that lack ``what``."""
    if missing := sorted(set(utts) - set(table)):
        raise ValueError(f"{where}: {len(missing)} of {len(utts)} utterances have no {what}: {' '.join(missing[:5])}")


def count(pairs: Sequence[Pair], metric: str) -> Counts:
    """Count the errors of pairs.

    Args:
        pairs: an empty hypothesis deletes its whole reference, an empty reference makes its whole hypothesis inserted.
        metric: ``wer`` or ``cer``; ``wer_or_cer`` of ``normalize.py`` chooses it, such as ``cer`` for Chinese.

    Returns:
        Sums over the pairs.
    """
    return sum((_count_pair(*pair.units(metric)) for pair in pairs), Counts())


def _count_pair(ref: Sequence[str], hyp: Sequence[str]) -> Counts:
    """Count the errors of the alignment that ``sclite`` finds: the least weight, 4 a substitution and 3 another error.

    This is the fewest errors but for rare cases in which one more has more correct units.
    """
    many = len(ref) + len(hyp) + 1  # more than there can be errors
    weight, errors = divmod(_distance(ref, hyp, 3 * many + 1, 4 * many + 1), many)  # of this weight, the fewest errors
    most = -_distance(ref, hyp, 3 * many - 1, 4 * many - 1) % many
    if errors < most:
        errors = _errors_of_sclite(ref, hyp)
    substitutions = weight - 3 * errors
    deletions = (errors - substitutions + len(ref) - len(hyp)) // 2
    return Counts(
        sentences=1,
        units=len(ref),
        correct=len(ref) - substitutions - deletions,
        substitutions=substitutions,
        deletions=deletions,
        insertions=errors - substitutions - deletions,
        sentence_errors=int(errors > 0),
        empty=int(not ref),
    )


def _distance(ref: Sequence[str], hyp: Sequence[str], gap: int, substitution: int) -> int:
    return Levenshtein.distance(ref, hyp, weights=(gap, gap, substitution))


def _errors_of_sclite(ref: Sequence[str], hyp: Sequence[str]) -> int:
    """Count the errors of the alignment that ``sclite`` takes of those with the least weight.

    Of equal weights, its ``net_dp.c`` prefers a pair of units to an insertion, and this to a deletion.
    """
    above = [(3 * i, i) for i in range(len(hyp) + 1)]  # weight and errors up to each unit of the hypothesis
    for unit in ref:
        row = [(above[0][0] + 3, above[0][1] + 1)]
        for i, other in enumerate(hyp):
            wrong = unit != other
            paired, deleted, inserted = above[i][0] + 4 * wrong, above[i + 1][0] + 3, row[i][0] + 3
            if paired <= deleted and paired <= inserted:
                row.append((paired, above[i][1] + wrong))
            elif deleted < inserted:
                row.append((deleted, above[i + 1][1] + 1))
            else:
                row.append((inserted, row[i][1] + 1))
        above = row
    return above[-1][1]


def read_rtf(path: Path) -> float | None:
    """Read a real-time factor; None if the file does not exist.

    Raises:
        ValueError: the file does not hold one number.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    try:
        return None if text is None else float(text)
    except ValueError:
        raise ValueError(f"{path}: expected one number, got {text[:40]!r}: decode the set again") from None


def read_confusion(predicted_path: Path, true_path: Path) -> dict[str, Counter[str]]:
    """Count how often each language was predicted for each true one.

    Args:
        predicted_path: the decoding's ``lang`` file.
        true_path: the reference's ``utt2lang``.

    Returns:
        True language -> predicted language -> utterances.

    Raises:
        ValueError: an utterance has no predicted language.
    """
    predicted, true = read_table(predicted_path), read_table(true_path)
    _require_all(true, predicted, "language", predicted_path)
    confusion: dict[str, Counter[str]] = {}
    for utt, lang in true.items():
        confusion.setdefault(lang, Counter())[predicted[utt]] += 1
    return confusion


def score_set(
    decode_dir: Path,
    dumpdir: Path,
    test_set: str,
    predicts_language: bool = False,
    normalizer: Normalizer = normalize,
) -> SetScore:
    """Score a test set by word and by character, each language separately.

    Args:
        decode_dir: holds ``<test_set>/text`` and, possibly, ``<test_set>/rtf``.
        dumpdir: holds ``<test_set>/{text,utt2lang}`` and, possibly, ``utt2spk``.
        test_set: name of the set.
        predicts_language: read the predicted languages in ``<decode_dir>/<test_set>/lang``.
        normalizer: normalises references and hypotheses.

    Returns:
        Pairs and counts of the set.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is incomplete, or a language has no reference to score.
    """
    data, decoded = dumpdir / test_set, decode_dir / test_set
    refs, langs = (read_table(data / name) for name in ("text", "utt2lang"))
    speakers = read_table(data / "utt2spk") if (data / "utt2spk").is_file() else {}
    pairs = make_pairs(refs, read_table(decoded / "text"), langs, decoded, normalizer)
    pairs = [replace(pair, speaker=speakers.get(pair.utt, pair.utt)) for pair in pairs]
    score = SetScore(test_set, pairs=pairs, rtf=read_rtf(decoded / "rtf"))
    if predicts_language:
        score.confusion = read_confusion(decoded / "lang", data / "utt2lang")
    groups = {
        lang: [pair for pair in pairs if pair.lang == lang] for lang in dict.fromkeys(pair.lang for pair in pairs)
    }
    for metric in METRICS:
        score.counts[metric] = {lang: count(group, metric) for lang, group in groups.items()}
    score.counts["wer_or_cer"] = {lang: score.counts[wer_or_cer(lang)][lang] for lang in groups}
    return score

"""Word and character error rates of decoded test sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import jiwer

from espnet_lole.evaluation.normalize import as_scored, normalize

METRICS = ("wer", "cer")


@dataclass(frozen=True)
class Counts:
    """Sums over utterances; two of them add up.

    Args:
        sentences: scored utterances.
        units: words or characters of their references.
        correct: units recognised.
        substitutions: units replaced.
        deletions: units left out.
        insertions: units added.
        sentence_errors: utterances with any error.
        excluded: utterances not scored, for their reference is empty after normalisation.
    """

    sentences: int = 0
    units: int = 0
    correct: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    sentence_errors: int = 0
    excluded: int = 0

    def __add__(self, other: Counts) -> Counts:
        """The counts of both."""
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def percent(self, count: int) -> float:
        """A count of units, in percent of the units of the references.

        Raises:
            ValueError: nothing was scored.
        """
        if not self.units:
            raise ValueError(
                "expected at least one reference that is not empty after normalisation, got none: check the text file"
            )
        return 100.0 * count / self.units

    @property
    def error(self) -> float:
        """(substitutions + deletions + insertions) / units, in percent; can exceed 100."""
        return self.percent(self.substitutions + self.deletions + self.insertions)

    @property
    def sentence_error(self) -> float:
        """Utterances with any error, in percent."""
        return 100.0 * self.sentence_errors / self.sentences if self.sentences else 0.0

    @property
    def percents(self) -> tuple[float, float, float, float, float, float]:
        """Corr, Sub, Del, Ins, Err and S.Err of ESPnet's tables."""
        edits = (self.percent(self.substitutions), self.percent(self.deletions), self.percent(self.insertions))
        return self.percent(self.correct), *edits, self.error, self.sentence_error


@dataclass(frozen=True)
class Pair:
    """A reference and a hypothesis as they are compared; ``utt`` and ``lang`` are of the reference."""

    utt: str
    lang: str
    ref: str
    hyp: str


@dataclass
class SetScore:
    """The scores of a system on a test set.

    Args:
        name: the test set.
        counts: metric -> language -> counts.
        details: metric -> one text of a few lines an utterance, the alignment.
        rtf: real-time factor, where the decoding wrote one.
        confusion: true language -> found language -> utterances, where the system found it.
    """

    name: str
    counts: dict[str, dict[str, Counts]] = field(default_factory=dict)
    details: dict[str, list[str]] = field(default_factory=dict)
    rtf: float | None = None
    confusion: dict[str, Counter[str]] = field(default_factory=dict)


def align(refs: Sequence[str], hyps: Sequence[str], metric: str) -> jiwer.WordOutput | jiwer.CharacterOutput:
    """Align pairs by word (``wer``) or by character (``cer``, where a space between words is a character)."""
    process = {"wer": jiwer.process_words, "cer": jiwer.process_characters}[metric]
    return process(list(refs), list(hyps))


def count(refs: Sequence[str], hyps: Sequence[str], metric: str) -> Counts:
    """Count the errors of normalised pairs.

    Args:
        refs: references; an empty one is left out, and counted in ``excluded``.
        hyps: as many hypotheses; an empty one deletes its whole reference.
        metric: ``wer`` or ``cer``.

    Returns:
        The sums over the pairs.
    """
    kept = [(ref, hyp) for ref, hyp in zip(refs, hyps, strict=True) if ref]
    excluded = len(refs) - len(kept)
    if not kept:
        return Counts(excluded=excluded)
    out = align([ref for ref, _ in kept], [hyp for _, hyp in kept], metric)
    return Counts(
        sentences=len(kept),
        units=out.hits + out.substitutions + out.deletions,
        correct=out.hits,
        substitutions=out.substitutions,
        deletions=out.deletions,
        insertions=out.insertions,
        sentence_errors=sum(any(chunk.type != "equal" for chunk in chunks) for chunks in out.alignments),
        excluded=excluded,
    )


def detail(pair: Pair, metric: str) -> str:
    """The alignment of an utterance for a person to read: S, D and I stand below the errors."""
    if not pair.ref:
        return f"id: {pair.utt} ({pair.lang}) excluded: empty reference\nHYP:  {pair.hyp}\n"
    out = align([pair.ref], [pair.hyp], metric)
    refs, hyps = out.references[0], out.hypotheses[0]
    columns: list[tuple[str, str, str]] = []
    for chunk in out.alignments[0]:
        mark = "" if chunk.type == "equal" else chunk.type[0].upper()
        left = refs[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hyps[chunk.hyp_start_idx : chunk.hyp_end_idx]
        left, right = left or ["*"] * len(right), right or ["*"] * len(left)
        columns += [(r.replace(" ", "_"), h.replace(" ", "_"), mark) for r, h in zip(left, right, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    rows = [" ".join(c[i].ljust(w) for c, w in zip(columns, widths, strict=True)).rstrip() for i in range(3)]
    scores = f"C={out.hits} S={out.substitutions} D={out.deletions} I={out.insertions}"
    return f"id: {pair.utt} ({pair.lang}) {scores}\nREF:  {rows[0]}\nHYP:  {rows[1]}\nEval: {rows[2]}".rstrip() + "\n"


def read_kaldi(path: Path) -> dict[str, str]:
    """Read ``utt value`` lines; the value may be empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has no utterance, or an utterance comes twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected the file {path}, found none: run the stage that writes it")
    values: dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            utt, *rest = line.split(maxsplit=1) or [""]
            if not utt or utt in values:
                raise ValueError(f"{path}:{number}: expected a new utterance id, got {utt!r}: remove or rename the line")
            values[utt] = rest[0].strip() if rest else ""
    return values


def _require_same(wanted: Collection[str], got: Collection[str], what: str, path: Path) -> None:
    """Raise a ``ValueError`` with the number and the first ids of the utterances that lack ``what``."""
    lacking = sorted(set(wanted) - set(got))
    if lacking:
        raise ValueError(f"{path}: {len(lacking)} of {len(wanted)} utterances have no {what}: {' '.join(lacking[:5])}")


def read_pairs(decode_dir: Path, dumpdir: Path, test_set: str) -> list[Pair]:
    """Read the normalised pairs of a test set, in the order of the references.

    Args:
        decode_dir: holds ``<test_set>/text``.
        dumpdir: holds ``<test_set>/{text,utt2lang}``.
        test_set: name of the set.

    Returns:
        A pair for each utterance of the reference.

    Raises:
        ValueError: an utterance lacks its hypothesis, reference or language.
    """
    ref_path, hyp_path = dumpdir / test_set / "text", decode_dir / test_set / "text"
    lang_path = dumpdir / test_set / "utt2lang"
    refs, hyps, langs = read_kaldi(ref_path), read_kaldi(hyp_path), read_kaldi(lang_path)
    _require_same(refs, hyps, "hypothesis", hyp_path)
    _require_same(hyps, refs, "reference", ref_path)
    _require_same(refs, [utt for utt, lang in langs.items() if lang], "language", lang_path)
    return [Pair(utt, langs[utt], normalize(ref, langs[utt]), normalize(hyps[utt], langs[utt])) for utt, ref in refs.items()]


def read_rtf(path: Path) -> float | None:
    """The real-time factor in a file; none where there is no file.

    Raises:
        ValueError: the file does not hold one number.
    """
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}: expected one number, got {text[:40]!r}: decode the set again") from None


def read_confusion(found_path: Path, langs_path: Path) -> dict[str, Counter[str]]:
    """How often each language was found for each true one.

    Args:
        found_path: the decoding's ``lang`` file.
        langs_path: the reference's ``utt2lang``.

    Returns:
        True language -> found language -> utterances.

    Raises:
        ValueError: an utterance has no language in one of them.
    """
    found, langs = read_kaldi(found_path), read_kaldi(langs_path)
    _require_same(langs, found, "language", found_path)
    confusion: dict[str, Counter[str]] = {}
    for utt, lang in langs.items():
        confusion.setdefault(lang, Counter())[found[utt]] += 1
    return confusion


def score_set(decode_dir: Path, dumpdir: Path, test_set: str, by_character: Collection[str], lid: bool = False) -> SetScore:
    """Score a test set by word and by character, each language on its own.

    Args:
        decode_dir: holds ``<test_set>/text`` and, possibly, ``<test_set>/rtf``.
        dumpdir: holds ``<test_set>/{text,utt2lang}``.
        test_set: name of the set.
        by_character: languages whose spaces are removed before the CER.
        lid: count the languages in ``<test_set>/lang`` too.

    Returns:
        The counts and alignments of the set.

    Raises:
        ValueError: nothing of a language can be scored.
    """
    pairs = read_pairs(decode_dir, dumpdir, test_set)
    score = SetScore(test_set, rtf=read_rtf(decode_dir / test_set / "rtf"))
    if lid:
        score.confusion.update(read_confusion(decode_dir / test_set / "lang", dumpdir / test_set / "utt2lang"))
    for metric in METRICS:
        compared = [
            replace(p, **{side: as_scored(getattr(p, side), p.lang, metric, by_character) for side in ("ref", "hyp")})
            for p in pairs
        ]
        groups: dict[str, list[Pair]] = {}
        for pair in compared:
            groups.setdefault(pair.lang, []).append(pair)
        score.counts[metric] = {lang: count([p.ref for p in g], [p.hyp for p in g], metric) for lang, g in groups.items()}
        score.details[metric] = [detail(pair, metric) for pair in compared]
    empty = [lang for lang, counts in score.counts["wer"].items() if not counts.units]
    if empty or not pairs:
        raise ValueError(
            f"{dumpdir / test_set / 'text'}: expected references to score, got none for: {' '.join(empty) or 'the set'}"
        )
    return score

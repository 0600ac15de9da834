"""Corpora of any languages, as a YAML file names them, brought together in data/train, data/dev and data/test_<language>."""

import difflib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import yaml

from espnet_lole.data.audio import SAMPLE_RATE, split_ark
from espnet_lole.data.kaldi import KaldiDir, Segment, atomic_dir, read_table, write_table

SETS = ("train", "dev", "test")
DUMP_MARKS = ("feats_type", "audio_format")


class Source(NamedTuple):
    """One Kaldi directory of a corpus; language None means that its utt2lang says."""

    language: str | None
    split: str
    path: Path


def whisper_languages() -> dict[str, str]:
    """Returns Whisper's language codes and their English names."""
    from whisper.tokenizer import LANGUAGES

    return LANGUAGES


def check_language(code: str, where: str | Path) -> str:
    """Checks a language code against Whisper's.

    Args:
        code: the code.
        where: the file that says so, for the message.

    Returns:
        The code.

    Raises:
        ValueError: Whisper has no such language.
    """
    languages = whisper_languages()
    if code in languages:
        return code
    names = {name: known for known, name in languages.items()}
    low = code.lower()
    close = {known for known in languages if low.replace("_", "-").partition("-")[0] in (known, languages[known])}
    close |= {names.get(match, match) for match in difflib.get_close_matches(low, [*languages, *names], cutoff=0.6)}
    told = ", ".join(f"{known} ({languages[known]})" for known in sorted(close))
    hint = f"did you mean one of: {told}" if close else f"it knows: {', '.join(sorted(languages))}"
    raise ValueError(f"{where}: expected a Whisper language code, got '{code}'; {hint}")


def _mapping(value: object, keys: Sequence[str], where: str, required: bool) -> dict[str, object]:
    """Returns a YAML mapping after checking its keys."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{where}: expected a mapping with {', '.join(keys)}, got {value!r}; see conf/corpora/example.yaml")
    unknown = [str(key) for key in value if key not in keys]
    if unknown:
        raise ValueError(f"{where}: expected only the keys {', '.join(keys)}, got {', '.join(unknown)}; correct or remove them")
    missing = [key for key in keys if required and not (isinstance(value.get(key), str) and value[key])]
    if missing:
        raise ValueError(
            f"{where}: expected a directory for each of {', '.join(keys)}, got none for {', '.join(missing)}; add it"
        )
    return value


def load_corpus(path: str | Path) -> tuple[Path, list[Source]]:
    """Reads a corpus file; the form is explained in conf/corpora/example.yaml.

    Args:
        path: the YAML file.

    Returns:
        The root that relative paths start from, and the directories it names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML of that form.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a corpus file at {path}, found none; write one after conf/corpora/example.yaml")
    try:
        # BaseLoader: every scalar is a string, so that the language `no` is not read as false
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, got: {' '.join(str(error).split())}; correct the file") from error
    corpus = _mapping(loaded, ("root", "languages", "sets"), str(path), required=False)
    if ("languages" in corpus) == ("sets" in corpus):
        raise ValueError(f"{path}: expected either 'languages' or 'sets', got {', '.join(corpus)}; keep exactly one of them")
    root = Path(str(corpus.get("root") or "."))
    if "sets" in corpus:
        sets = _mapping(corpus["sets"], SETS, f"{path}: sets", required=True)
        return root, [Source(None, split, root / str(sets[split])) for split in SETS]
    languages = corpus["languages"]
    if not isinstance(languages, dict) or not languages:
        raise ValueError(
            f"{path}: expected 'languages' to map codes to directories, got {languages!r}; see conf/corpora/example.yaml"
        )
    sources = []
    for code, value in languages.items():
        sets = _mapping(value, SETS, f"{path}: languages: {code}", required=True)
        sources += [Source(check_language(code, path), split, root / str(sets[split])) for split in SETS]
    return root, sources


def prefixed(language: str, name: str) -> str:
    """Returns an id that starts with its language, so that the ids of two languages never clash."""
    return name if name.startswith((f"{language}_", f"{language}-")) else f"{language}_{name}"


def locate(entry: str, places: Sequence[Path]) -> str | None:
    """Makes a wav.scp entry independent of the current directory.

    Args:
        entry: a path, an ark offset or a command (returned as it is).
        places: where a relative path may start, in this order.

    Returns:
        The entry with an absolute path; None if a relative path is in none of the places.
    """
    if entry.endswith("|"):
        return entry
    path, offset = split_ark(entry)
    if not os.path.isabs(path):
        found = next((place / path for place in places if (place / path).exists()), None)
        if found is None:
            return None
        path = os.path.abspath(found)
    return path if offset is None else f"{path}:{offset}"


def _add(table: dict, key: str, value: object, where: Path) -> None:
    """Adds a row; one id for two things is an error."""
    if table.setdefault(key, value) != value:
        raise ValueError(f"{where}: expected ids that differ, got '{key}' twice once the language is put before it; rename one")


def select(kaldi: KaldiDir, language: str, utts: Iterable[str], root: Path) -> tuple[KaldiDir, Counter[str]]:
    """Takes one language's usable utterances out of a directory, under ids that start with the language.

    Args:
        kaldi: the directory.
        language: its code.
        utts: the language's utterances.
        root: where relative audio paths may start, besides the current directory, `kaldi` and its parent.

    Returns:
        The part, and how many utterances were skipped per reason.

    Raises:
        ValueError: two ids become one, or nothing is usable.
    """
    here = Path(os.path.abspath(kaldi.path))
    places = (Path(os.path.abspath(".")), Path(os.path.abspath(root)), here, here.parent)
    part = KaldiDir(kaldi.path, {}, {}, {}, {}, None if kaldi.segments is None else {})
    kept, skipped = kaldi.usable(utts)
    for utt in kept:
        recording = kaldi.recording(utt)
        entry = locate(kaldi.wav[recording], places)
        if entry is None:
            skipped["audio not found"] += 1
            continue
        name = prefixed(language, utt)
        if name in part.text:
            raise ValueError(
                f"{kaldi.path}: expected ids that differ, got '{name}' twice once the language is put before; rename one"
            )
        _add(part.wav, prefixed(language, recording), entry, kaldi.path)
        part.text[name] = kaldi.text[utt]
        part.utt2spk[name] = prefixed(language, kaldi.speaker(utt))
        part.utt2lang[name] = language
        if part.segments is not None and kaldi.segments is not None:
            part.segments[name] = Segment(prefixed(language, recording), *kaldi.segments[utt][1:])
    if not part.text:
        raise ValueError(_nothing_usable(kaldi, language, skipped, places))
    return part, skipped


def _nothing_usable(kaldi: KaldiDir, language: str, skipped: Counter[str], places: Sequence[Path]) -> str:
    """Returns the message for a directory without a usable utterance."""
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "no utterance"
    hint = "check its text and wav.scp"
    if skipped["audio not found"]:
        hint = f"looked for '{next(iter(kaldi.wav.values()))}' in {', '.join(map(str, places))}"
    return f"{kaldi.path}: expected utterances in '{language}', none is usable ({why}); {hint}"


def merge(parts: Sequence[KaldiDir]) -> KaldiDir:
    """Joins parts into one directory; if only some have segments, the others' recordings become segments of their own.

    Args:
        parts: what `select` gave, of one set.

    Returns:
        The whole.
    """
    whole = KaldiDir(parts[0].path, {}, {}, {}, {}, {} if any(part.segments is not None for part in parts) else None)
    for part in parts:
        for name in ("wav", "text", "utt2spk", "utt2lang"):
            for key, value in getattr(part, name).items():
                _add(getattr(whole, name), key, value, part.path)
        if whole.segments is not None:
            own = part.segments
            whole.segments |= {utt: Segment(utt, 0.0, -1.0) for utt in part.text} if own is None else own
    return whole


def _by_language(source: Source, kaldi: KaldiDir) -> dict[str, list[str]]:
    """Returns language -> utterances of a directory."""
    if source.language is not None:
        return {source.language: kaldi.utterances()}
    if not kaldi.utt2lang:
        raise FileNotFoundError(
            f"expected a file {kaldi.path / 'utt2lang'} with a line per utterance, found none; write it, "
            "or name the corpus per language under 'languages'"
        )
    for code in sorted(set(kaldi.utt2lang.values())):
        check_language(code, kaldi.path / "utt2lang")
    groups: dict[str, list[str]] = {}
    for utt in kaldi.utterances():
        groups.setdefault(kaldi.utt2lang.get(utt, ""), []).append(utt)
    return groups


def _report(language: str, split: str, part: KaldiDir, skipped: Counter[str]) -> str:
    """Returns the summary line of one language's set."""
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    told = f", skipped {sum(skipped.values())} ({why})" if skipped else ""
    return f"{language} {split}: {len(part.text)} utterances, {len(set(part.utt2spk.values()))} speakers{told}"


def collect(corpus: str | Path, datadir: str | Path, langs: Sequence[str] = ()) -> list[str]:
    """Writes datadir/train, datadir/dev (all languages) and datadir/test_<language>.

    Args:
        corpus: the YAML file.
        datadir: where to write.
        langs: the languages to take; all by default.

    Returns:
        A summary line per language and set.

    Raises:
        FileNotFoundError: a directory or file does not exist.
        ValueError: the corpus file or a table is malformed, or a language is not there.
    """
    root, sources = load_corpus(corpus)
    parts: dict[str, list[KaldiDir]] = {}
    found: dict[str, set[str]] = {split: set() for split in SETS}
    lines = []
    for source in sources:
        if source.language is not None and langs and source.language not in langs:
            found[source.split].add(source.language)
            continue
        kaldi = KaldiDir.read(source.path)
        for language, utts in sorted(_by_language(source, kaldi).items()):
            if not language:
                lines.append(f"? {source.split}: skipped {len(utts)} (not in utt2lang)")
                continue
            found[source.split].add(language)
            if langs and language not in langs:
                continue
            part, skipped = select(kaldi, language, utts, root)
            parts.setdefault(f"test_{language}" if source.split == "test" else source.split, []).append(part)
            lines.append(_report(language, source.split, part, skipped))
    for split in SETS:
        _check_selected(langs, found[split], f"{corpus}: {split}")
    _write_all(parts, Path(datadir), sources)
    return lines


def _check_selected(langs: Sequence[str], found: set[str], where: str) -> None:
    """Raises if a wanted language is not there."""
    unknown = [code for code in langs if code not in found]
    if unknown:
        have = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{where}: expected languages out of {have}, got {', '.join(unknown)}; correct --langs")


def _write_all(parts: dict[str, list[KaldiDir]], datadir: Path, sources: Sequence[Source]) -> None:
    """Writes the sets; none takes its place before all are written."""
    inputs = {os.path.realpath(source.path) for source in sources}
    for name in parts:
        if os.path.realpath(datadir / name) in inputs:
            raise ValueError(
                f"expected outputs that differ from the inputs, got {datadir / name} for both; choose another --datadir"
            )
    with ExitStack() as stack:
        for name, own in parts.items():
            merge(own).write(stack.enter_context(atomic_dir(datadir / name)))


def filter_dir(src: str | Path, dst: str | Path, min_seconds: float, max_seconds: float, langs: Sequence[str] = ()) -> list[str]:
    """Keeps a formatted directory's utterances of some languages whose length is within bounds (both included).

    Args:
        src: a directory `format_dir` wrote; the audio stays there.
        dst: the directory to write, whole or not at all.
        min_seconds: the shortest to keep.
        max_seconds: the longest to keep.
        langs: the languages to keep; all by default.

    Returns:
        A summary line per language.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: the bounds or languages do not fit, or a language loses every utterance.
    """
    _check_filter(src, dst, min_seconds, max_seconds)
    kaldi, lengths = KaldiDir.read(src), _read_lengths(Path(src) / "utt2num_samples")
    present = set(kaldi.utt2lang.values())
    _check_selected(langs, present, str(Path(src) / "utt2lang"))
    usable, _ = kaldi.usable()
    kept: dict[str, int] = {}
    lines = []
    for language in sorted(set(langs) or present):
        own = [utt for utt in usable if kaldi.utt2lang.get(utt) == language and utt in lengths]
        fit = {utt: lengths[utt] for utt in own if min_seconds <= lengths[utt] / SAMPLE_RATE <= max_seconds}
        if not fit:
            raise ValueError(
                f"{src}: expected utterances in '{language}' of {min_seconds} to {max_seconds} s, "
                f"got none of {len(own)}; widen the bounds or leave the language out"
            )
        kept |= fit
        hours = sum(fit.values()) / SAMPLE_RATE / 3600
        lines.append(f"{language}: kept {len(fit)} utterances, {hours:.2f} h; dropped {len(own) - len(fit)} by length")
    if not kept:
        raise ValueError(f"{src}: expected utterances with a language, got none in utt2lang; format the directory again")
    others = sum(language not in langs for language in kaldi.utt2lang.values()) if langs else 0
    _write_kept(kaldi, Path(dst), kept)
    return lines + ([f"dropped {others} utterances of other languages"] if others else [])


def _check_filter(src: str | Path, dst: str | Path, min_seconds: float, max_seconds: float) -> None:
    """Raises if the bounds are not in order, or the output is the input."""
    if not 0 <= min_seconds <= max_seconds:
        raise ValueError(f"expected 0 <= min_wav_duration <= max_wav_duration, got {min_seconds} and {max_seconds}; correct them")
    if os.path.realpath(src) == os.path.realpath(dst):
        raise ValueError(f"expected dst to differ from src, got {src} for both; choose another dst")


def _write_kept(kaldi: KaldiDir, dst: Path, kept: dict[str, int]) -> None:
    """Writes the kept utterances' tables and the marks of a formatted directory."""
    tables = ({utt: table[utt] for utt in kept} for table in (kaldi.wav, kaldi.text, kaldi.utt2spk, kaldi.utt2lang))
    with atomic_dir(dst) as folder:
        KaldiDir(dst, *tables).write(folder)
        write_table(folder / "utt2num_samples", kept)
        for name in DUMP_MARKS:
            shutil.copyfile(kaldi.path / name, folder / name)


def _read_lengths(path: Path) -> dict[str, int]:
    """Reads utt2num_samples."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a file {path}, found none; run `lole_data format` first")
    lengths = {}
    for utt, value in read_table(path).items():
        if not value.isdecimal():
            raise ValueError(f"{path}: expected a number of samples for '{utt}', got '{value}'; format the directory again")
        lengths[utt] = int(value)
    return lengths

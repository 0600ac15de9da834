"""RESULTS.md and result.txt from the scores of decoded test sets."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from espnet_lole.atomic_io import write_whole
from espnet_lole.evaluation.normalize import DESCRIPTION
from espnet_lole.evaluation.rates import METRICS, Counts, SetScore
from espnet_lole.evaluation.results import SystemScore
from espnet_lole.evaluation.summary import PAPER, cost_table, error_table

_TABLE_HEAD = "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|\n|---|---|---|---|---|---|---|---|---|\n"


def _row(dataset: str, counts: Counts) -> str:
    """A line of ESPnet's table."""
    return f"|{dataset}|{counts.sentences}|{counts.units}|" + "|".join(f"{p:.1f}" for p in counts.percents) + "|\n"


def _rows(score: SetScore, tag: str, metric: str) -> str:
    """The lines of a set: one for each language, which is named where there are several."""
    counts = score.counts[metric]
    name = f"{tag}/{score.name}"
    return "".join(_row(name if len(counts) == 1 else f"{name} ({lang})", c) for lang, c in counts.items())


def write_result_txt(score: SystemScore) -> None:
    """Write ``<decode_dir>/<set>/score_{wer,cer}/result.txt``: the table, then the alignment of each utterance."""
    decode_dir = score.decoded.decode_dir
    for test_set in score.sets:
        for metric in METRICS:
            excluded = sum(counts.excluded for counts in test_set.counts[metric].values())
            text = _TABLE_HEAD + _rows(test_set, decode_dir.name, metric)
            text += f"\nexcluded (empty reference after normalisation): {excluded}\n\n" + "\n".join(test_set.details[metric])
            write_whole(decode_dir / test_set.name / f"score_{metric}" / "result.txt", text)


def summary_table(scores: Sequence[SystemScore], rows: Sequence[Mapping[str, str]], by_character: Collection[str]) -> str:
    """The errors of these systems, over all seeds in the rows of results.csv."""
    languages = list(dict.fromkeys(lang for score in scores for lang in score.languages))
    return error_table(rows, [(s.decoded.system, s.decoded.scenario) for s in scores], languages, by_character)


def results_md(
    scores: Sequence[SystemScore], rows: Sequence[Mapping[str, str]], by_character: Collection[str], command: str
) -> str:
    """The text of RESULTS.md.

    Args:
        scores: the systems, in the order of the summary.
        rows: of results.csv, with other seeds of them.
        by_character: languages whose error is the CER.
        command: the command line that makes the file.

    Returns:
        Markdown: errors and costs, the paper's figures, the environment, then ESPnet's tables for each experiment.
    """
    excluded = ", ".join(f"{s.decoded.system} {s.decoded.scenario} {s.excluded}" for s in scores)
    systems = [(s.decoded.system, s.decoded.scenario) for s in scores]
    parts = [
        "# RESULTS\n\nError in percent: WER, or CER where marked (spaces removed). The average is over the languages. The "
        "language is given (aware) or found (agnostic). The best of a scenario in bold; of several seeds, mean ± standard "
        "deviation.\n\n",
        summary_table(scores, rows, by_character),
        f"\nText normalisation of references and hypotheses: {DESCRIPTION}.\n",
        f"Utterances left out, for their reference is empty after it: {excluded}.\n",
        "\nWhat they cost. MoLE and a student are trained after the experts. Time is with validation. Memory is the peak of the "
        "decoding process, on a CPU with Python and its libraries (about half a GB).\n\n",
        cost_table(rows, systems),
        f"\nThe paper's own figures, for Whisper-medium and other data (arXiv 2506.21555; WER over 8 languages):\n\n{PAPER}",
        f"\nMade by `{command}`\n\n## Environments\n\n{environments()}",
    ]
    experiments: dict[Path, list[SystemScore]] = {}
    for score in scores:
        experiments.setdefault(score.decoded.decode_dir.parent, []).append(score)
    for exp, group in experiments.items():
        parts.append(f"\n## {exp}\n\n{describe(group)}\n")
        for metric in METRICS:
            lines = "".join(_rows(test_set, s.decoded.decode_dir.name, metric) for s in group for test_set in s.sets)
            parts.append(f"\n### {metric.upper()}\n\n{_TABLE_HEAD}{lines}")
    return "".join(parts)


def describe(group: Sequence[SystemScore]) -> str:
    """What the decodings of an experiment are, and the configurations of it."""
    names = "; ".join(f"`{s.decoded.decode_dir.name}` is {s.decoded.system}, {s.decoded.scenario}" for s in group)
    configs = list(dict.fromkeys(config for s in group for config in s.configs()))
    return names + (f"\n\nconfigurations: {' '.join(f'`{config}`' for config in configs)}" if configs else "")


def environments() -> str:
    """ESPnet's list of what the results were made with."""
    facts = {
        "date": datetime.now().astimezone().strftime("%a %b %d %H:%M:%S %Z %Y"),
        "python version": platform.python_version(),
        **{f"{name} version": _version(package) for name, package in _PACKAGES.items()},
        "git hash": _git_hash(),
        "hardware": _hardware(),
    }
    return "".join(f"- {name}: `{value}`\n" for name, value in facts.items() if value)


_PACKAGES = {"espnet": "espnet", "pytorch": "torch", "transformers": "transformers", "espnet_lole": "espnet_lole"}
"""Name in the list -> package."""


def _version(package: str) -> str:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_hash() -> str | None:
    """The commit of the checkout this file lies in, with ``-dirty`` after local changes."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _hardware() -> str:
    """Processor and graphics cards."""
    cpu = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([f"{os.cpu_count()} CPU cores, {cpu}", *cards])


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []

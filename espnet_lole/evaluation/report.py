"""RESULTS.md and result.txt."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.evaluation.normalize import DESCRIPTION
from espnet_lole.evaluation.rates import METRICS, SetScore
from espnet_lole.evaluation.results import Row, SystemScore
from espnet_lole.evaluation.summary import PAPER, error_table, resource_table, write_table

TITLE = "# RESULTS\n"
RESULTS = (
    f"{TITLE}\n"
    + """\
Error rates in percent: WER, or CER where marked (spaces removed). The average is over the languages. The language is \
given (aware) or predicted (agnostic). The best of a scenario in bold; over several seeds, mean ± standard deviation.

{errors}
Text normalisation of references and hypotheses: {normalisation}.
Utterances whose reference is empty after normalisation, so that their hypotheses count as insertions: {empty}.

Resources. MoLE and students are trained after the experts, whose training is not included. Time includes validation. \
Memory is the peak of the decoding process; on a CPU it includes Python and its libraries (about half a GB).

{resources}
Figures of the paper, for Whisper-medium and other data (arXiv 2506.21555; WER over 8 languages):

{paper}
Made by `{command}`

## Environments

{environments}"""
)


def results_md(scores: Sequence[SystemScore], rows: Sequence[Row], command: str) -> str:
    """Write the text of RESULTS.md: summaries, the environment, then ESPnet's tables for each experiment.

    Args:
        scores: the systems, in the order of the summary.
        rows: rows of results.csv, which may have other seeds of these systems.
        command: the command line that makes the file.
    """
    text = RESULTS.format(
        errors=summary_table(scores, rows),
        normalisation=DESCRIPTION,
        empty=", ".join(f"{' '.join(score.decoded.key)} {score.empty}" for score in scores),
        resources=resource_table(rows, [score.decoded.key for score in scores]),
        paper=PAPER,
        command=command,
        environments="".join(f"- {name}: `{value}`\n" for name, value in environments().items()),
    )
    experiments: dict[Path, list[SystemScore]] = {}
    for score in scores:
        experiments.setdefault(score.decoded.decode_dir.parent, []).append(score)
    return text + "".join(f"\n## {folder}\n\n{_experiment(group)}" for folder, group in experiments.items())


def summary_table(scores: Sequence[SystemScore], rows: Sequence[Row]) -> str:
    """Write the error rates of these systems over all seeds in the rows of results.csv."""
    languages = list(dict.fromkeys(lang for score in scores for lang in score.languages))
    return error_table(rows, [score.decoded.key for score in scores], languages)


def _experiment(group: Sequence[SystemScore]) -> str:
    """Describe the decodings of an experiment, with ESPnet's tables."""
    names = [f"`{score.decoded.decode_dir.name}` is {', '.join(score.decoded.key)}" for score in group]
    parts = ["; ".join(names) + "\n"]
    if configs := dict.fromkeys(config for score in group for config in score.configs()):
        parts.append("\nconfigurations: " + " ".join(f"`{config}`" for config in configs) + "\n")
    sets = [(score.decoded.decode_dir.name, test_set) for score in group for test_set in score.sets]
    return "".join([*parts, *(f"\n### {metric.upper()}\n\n{_espnet_table(sets, metric)}" for metric in METRICS)])


def _espnet_table(sets: Sequence[tuple[str, SetScore]], metric: str) -> str:
    """Write ESPnet's table of test sets, each with its inference tag: one line for each language of a set."""
    lines = []
    for tag, score in sets:
        for lang, counts in score.counts[metric].items():
            name = f"{tag}/{score.name}" + (f" ({lang})" if len(score.languages) > 1 else "")
            lines.append([name, str(counts.sentences), str(counts.units), *map("{:.1f}".format, counts.percentages)])
    return write_table("dataset Snt Wrd Corr Sub Del Ins Err S.Err".split(), lines)


def write_result_txt(score: SystemScore) -> None:
    """Write ``<decode_dir>/<set>/score_{wer,cer}/result.txt``: ESPnet's table, then the alignment of each utterance."""
    decode_dir = score.decoded.decode_dir
    for test_set in score.sets:
        for metric in METRICS:
            empty = sum(counts.empty for counts in test_set.counts[metric].values())
            table = _espnet_table([(decode_dir.name, test_set)], metric)
            text = f"{table}\nempty references, whose hypotheses are insertions: {empty}\n\n"
            write_text_atomic(
                decode_dir / test_set.name / f"score_{metric}" / "result.txt", text + test_set.alignments[metric]
            )


def environments() -> dict[str, str]:
    """Return ESPnet's list of what the results were made with."""
    packages = {"espnet": "espnet", "pytorch": "torch", "transformers": "transformers", "espnet_lole": "espnet_lole"}
    return {
        "date": datetime.now().astimezone().strftime("%a %b %d %H:%M:%S %Z %Y"),
        "python version": platform.python_version(),
        **{f"{name} version": _version(package) for name, package in packages.items()},
        "git hash": _git_hash(),
        "hardware": _hardware(),
    }


def _version(package: str) -> str:
    """Return the version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_hash() -> str:
    """Return the commit of this checkout, with ``-dirty`` after local changes."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _hardware() -> str:
    """Name the processor and the GPUs."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text() if cpuinfo.is_file() else "")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([f"{os.cpu_count()} CPU cores, {model[1] if model else platform.machine()}", *gpus])

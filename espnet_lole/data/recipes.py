"""Corpora prepared by ESPnet's own recipes: run their local/data.sh in a checkout and import the result."""

import os
import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from espnet_lole.data.audio import read_audio, split_ark
from espnet_lole.data.kaldi import KaldiDir
from espnet_lole.data.reading import duration
from espnet_lole.data.samples import AudioError
from espnet_lole.languages import lower

OPTIONAL_KEYS = ("max_hours", "lower", "remove")
BEYOND_LIMIT = "beyond max_hours"


@dataclass(frozen=True)
class Recipe:
    """A recipe of ESPnet, and how to import its data.

    Attributes:
        name: folder of the recipe in egs2, such as librispeech/asr1.
        options: options of its local/data.sh.
        lower: convert the transcripts to lower case, by the rules of their language.
        remove: regular expression to remove from the transcripts.
        max_hours: limit of the training audio.
    """

    name: str
    options: tuple[str, ...] = ()
    lower: bool = False
    remove: str = ""
    max_hours: float = float("inf")

    @classmethod
    def parse(cls, entry: Mapping[str, str], where: str) -> "Recipe":
        """Parse the entry of a language in a corpus file.

        Args:
            entry: its key `recipe` and some of OPTIONAL_KEYS, with their values.
            where: the place of the entry, for messages.

        Raises:
            ValueError: a value is malformed.
        """
        lower, remove = entry.get("lower", "false"), entry.get("remove", "")
        try:
            name, *options = shlex.split(entry["recipe"])
            re.compile(remove)
            max_hours = float(entry.get("max_hours", "inf"))
        except (re.error, ValueError) as error:
            raise ValueError(
                f"{where}: expected a name and options in recipe, a number in max_hours and a regular expression "
                f"in remove, got: {error}"
            ) from error
        if lower not in ("true", "false") or not max_hours > 0:
            raise ValueError(
                f"{where}: expected lower to be true or false and max_hours above 0, got {lower} and {max_hours:g}"
            )
        return cls(name if "/" in name else f"{name}/asr1", tuple(options), lower == "true", remove, max_hours)

    @cached_property
    def folder(self) -> Path:
        """Absolute path of the recipe in the checkout at ESPNET_ROOT.

        Raises:
            FileNotFoundError: there is no checkout, or no such recipe in it.
        """
        root = os.environ.get("ESPNET_ROOT")
        if not root:
            raise FileNotFoundError(
                f"expected ESPNET_ROOT to be the path of an ESPnet checkout with egs2/{self.name}; export it"
            )
        folder = Path(os.path.abspath(root), "egs2", self.name)
        if not (folder / "local" / "data.sh").is_file():
            raise FileNotFoundError(f"{folder}/local/data.sh does not exist; correct ESPNET_ROOT or the recipe's name")
        return folder

    def prepare(self, set_name: str) -> Path:
        """Return the directory `data/<set_name>` of the recipe, after running local/data.sh if it does not exist.

        Raises:
            FileNotFoundError: there is no such recipe.
            OSError: local/data.sh failed, or did not create the directory.
        """
        directory = self.folder / "data" / set_name
        if (directory / "wav.scp").is_file():
            return directory
        command = ["bash", "local/data.sh", *self.options]
        print(f"{self.folder}: {shlex.join(command)}", file=sys.stderr, flush=True)
        status = subprocess.run(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
        if status != 0 or not (directory / "wav.scp").is_file():
            sets = ", ".join(sorted(path.parent.name for path in self.folder.glob("data/*/wav.scp"))) or "none"
            raise OSError(
                f"expected {directory} from {shlex.join(command)}, got exit status {status} and the sets: {sets}; "
                f"read its messages above, set the corpus's location in {self.folder}/db.sh, or correct the set's name"
            )
        return directory

    def clean(self, text: str, language: str) -> str:
        """Apply `remove` and `lower` to a transcript in a language."""
        text = " ".join(re.sub(self.remove, " ", text).split()) if self.remove else text
        return lower(text, language) if self.lower else text


def run_in_folder(command: str, folder: Path) -> str:
    """Change a command of wav.scp (it ends in `|`) so that it runs in a folder."""
    return f"cd {shlex.quote(str(folder))} && {{ {command[:-1].strip().rstrip(';')}; }} |"


def limit_duration(kaldi: KaldiDir, seconds: float) -> tuple[KaldiDir, dict[str, str]]:
    """Select utterances up to a total duration, in the order of a hash of their ids: the same ones in every run.

    Args:
        kaldi: a directory of usable utterances with absolute paths.
        seconds: the limit.

    Returns:
        The selected utterances, and the others with BEYOND_LIMIT.
    """
    order = sorted(kaldi.text, key=lambda utt: (zlib.crc32(utt.encode()), utt))
    total, selected = 0.0, []
    for utt in order:
        total += _duration(kaldi, utt)
        if total > seconds:
            break
        selected.append(utt)
    return kaldi.subset(selected), dict.fromkeys(order[len(selected) :], BEYOND_LIMIT)


def _duration(kaldi: KaldiDir, utt: str) -> float:
    """Return the seconds of an utterance, from its segment or its file's header; arks and commands are read whole."""
    start, entry = 0.0, kaldi.wav[kaldi.recording(utt)]
    if kaldi.segments is not None:
        _, start, end = kaldi.segments[utt]
        if end != -1:
            return end - start
    try:
        if entry.endswith("|") or split_ark(entry)[1] is not None:
            samples, rate = read_audio(entry)
            return len(samples) / rate - start
        return (duration(entry) or 0.0) - start
    except AudioError:
        return 0.0  # formatting will drop the utterance and name the reason

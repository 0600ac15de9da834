"""ESPnet's recipes in a corpus file: what an entry says of them, and how their data are imported."""

import os
import re
import shlex
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_lole.data.audio import read_audio, split_ark
from espnet_lole.data.kaldi import KaldiDir
from espnet_lole.data.reading import duration
from espnet_lole.data.samples import AudioError
from espnet_lole.data.texts import remove_tags
from espnet_lole.languages import lower

OPTIONAL_KEYS = ("offline", "needs", "assume", "max_hours", "lower", "remove")
BEYOND_LIMIT = "beyond max_hours"


@dataclass(frozen=True)
class Recipe:
    """A recipe of ESPnet, and how to import its data.

    Attributes:
        name: folder of the recipe in egs2, such as librispeech/asr1.
        options: options of its local/data.sh.
        offline: options that leave out the download.
        needs: what local/data.sh or the commands in its wav.scp use: programs, `python:MODULE`, or files after a
            variable of db.sh, such as `$MLS/mls_french`.
        assume: what the recipe asks for without using it here: programs, files in the checkout or after a variable of
            db.sh; a folder ends in a slash. Empty ones stand in where they are missing.
        lower: convert the transcripts to lower case, by the rules of their language.
        remove: regular expression to remove from the transcripts.
        max_hours: limit of the training audio.
    """

    name: str
    options: tuple[str, ...] = ()
    offline: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    assume: tuple[str, ...] = ()
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
            offline = tuple(shlex.split(entry.get("offline", "")))
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
        needs, assume = (tuple(entry.get(key, "").split()) for key in ("needs", "assume"))
        name = name if "/" in name else f"{name}/asr1"
        return cls(name, tuple(options), offline, needs, assume, lower == "true", remove, max_hours)

    @property
    def command(self) -> str:
        """Name and options: recipes with the same command prepare the same sets."""
        return shlex.join([self.name, *self.options])

    @property
    def folder(self) -> Path:
        """Absolute path of the recipe in the checkout at ESPNET_ROOT.

        Raises:
            FileNotFoundError: there is no checkout.
        """
        root = os.environ.get("ESPNET_ROOT")
        if not root:
            raise FileNotFoundError(
                f"expected ESPNET_ROOT to be the path of an ESPnet checkout with egs2/{self.name}; export it"
            )
        return Path(os.path.abspath(root), "egs2", self.name)

    def clean(self, text: str, language: str) -> str:
        """Remove tags and `remove` from a transcript in a language, and apply `lower`."""
        text = remove_tags(text)
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

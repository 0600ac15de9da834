"""Corpora that ESPnet's own recipes prepare: their local/data.sh is run in a checkout, and what it leaves is taken over."""

import os
import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile

from espnet_lole.data.audio import AudioError, read_audio, split_ark
from espnet_lole.data.kaldi import KaldiDir

KEYS = ("recipe", "train", "dev", "test", "max_hours", "lower", "remove")
LIMIT = "beyond max_hours"


@dataclass(frozen=True)
class Recipe:
    """A recipe of ESPnet, and how its data are taken over.

    Attributes:
        folder: the recipe's, in the checkout.
        options: of its local/data.sh.
        lower: makes the texts lower case.
        remove: a regular expression of what goes from the texts.
        max_hours: of training audio, at most.
    """

    folder: Path
    options: tuple[str, ...] = ()
    lower: bool = False
    remove: str = ""
    max_hours: float = float("inf")

    @classmethod
    def parse(cls, value: Mapping[str, str], where: str) -> "Recipe":
        """Reads a language's entry of a corpus file.

        Args:
            value: its keys, `KEYS`, and their values.
            where: the entry, for messages.

        Returns:
            The recipe.

        Raises:
            ValueError: a value cannot be understood.
        """
        name, *options = shlex.split(value["recipe"])
        lower, remove = value.get("lower", "false"), value.get("remove", "")
        try:
            re.compile(remove)
            hours = float(value.get("max_hours", "inf"))
        except (re.error, ValueError) as error:
            raise ValueError(f"{where}: expected a number in max_hours, a regular expression in remove, got: {error}") from error
        if lower not in ("true", "false") or not hours > 0:
            raise ValueError(f"{where}: expected lower of true or false and max_hours above 0, got {lower} and {hours:g}")
        folder = Path("egs2", name) if "/" in name else Path("egs2", name, "asr1")
        return cls(folder, tuple(options), lower == "true", remove, hours)

    def found(self) -> "Recipe":
        """Returns the recipe with its folder in the checkout at ESPNET_ROOT.

        Raises:
            FileNotFoundError: there is no checkout, or no such recipe in it.
        """
        root = os.environ.get("ESPNET_ROOT")
        if not root:
            raise FileNotFoundError(f"expected ESPNET_ROOT, the ESPnet checkout that holds {self.folder}, got none; export it")
        folder = Path(os.path.abspath(root), self.folder)
        if not (folder / "local" / "data.sh").is_file():
            raise FileNotFoundError(f"expected {folder}/local/data.sh, found none; correct ESPNET_ROOT or the recipe's name")
        return replace(self, folder=folder)

    def prepare(self, name: str) -> Path:
        """Runs local/data.sh if the directory of a set is not there yet.

        Args:
            name: the set, data/<name>.

        Returns:
            The directory.

        Raises:
            OSError: it failed, or did not leave the directory.
        """
        directory = self.folder / "data" / name
        if (directory / "wav.scp").is_file():
            return directory
        command = ["bash", "local/data.sh", *self.options]
        print(f"{self.folder}: {shlex.join(command)}", file=sys.stderr, flush=True)
        status = subprocess.run(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
        if status != 0 or not (directory / "wav.scp").is_file():
            there = ", ".join(sorted(path.parent.name for path in self.folder.glob("data/*/wav.scp"))) or "none"
            raise OSError(
                f"expected {directory} from {shlex.join(command)}, got exit status {status} and the sets: {there}; read its "
                f"messages above, set the corpus's place in {self.folder}/db.sh, or correct the set's name"
            )
        return directory

    def clean(self, text: str) -> str:
        """Returns a transcript as it is to be taken over."""
        text = " ".join(re.sub(self.remove, " ", text).split()) if self.remove else text
        return text.lower() if self.lower else text

    def command(self, entry: str) -> str:
        """Returns a wav.scp command (it ends in `|`) that runs in the recipe's folder."""
        return f"cd {shlex.quote(str(self.folder))} && {{ {entry[:-1].strip().rstrip(';')}; }} |"


def limit(part: KaldiDir, seconds: float) -> tuple[dict[str, str], float]:
    """Takes utterances out of a directory until the rest is no longer than asked; which ones go depends on their ids alone.

    Args:
        part: the directory with absolute paths; changed in place.
        seconds: what may stay.

    Returns:
        Why each of the others went, and the seconds that stay.
    """
    total, full, dropped = 0.0, False, {}
    for utt in sorted(part.text, key=lambda utt: (zlib.crc32(utt.encode()), utt)):
        length = 0.0 if full else _seconds(part, utt)
        full = full or total + length > seconds
        if full:
            dropped[utt] = LIMIT
            for table in (part.text, part.utt2spk, part.utt2lang, part.wav if part.segments is None else part.segments):
                table.pop(utt)
        else:
            total += length
    if part.segments is not None:
        used = {segment.recording for segment in part.segments.values()}
        part.wav = {recording: entry for recording, entry in part.wav.items() if recording in used}
    return dropped, total


def _seconds(part: KaldiDir, utt: str) -> float:
    """Returns an utterance's length, from its segment or its file's header; only arks and commands are read whole."""
    start, entry = 0.0, part.wav[part.recording(utt)]
    if part.segments is not None:
        start = part.segments[utt].start
        if part.segments[utt].end != -1:
            return part.segments[utt].end - start
    try:
        if entry.endswith("|") or split_ark(entry)[1] is not None:
            samples, rate = read_audio(entry)
            return len(samples) / rate - start
        return soundfile.info(entry).duration - start
    except (AudioError, soundfile.SoundFileError):
        return 0.0  # formatting drops it, and says why

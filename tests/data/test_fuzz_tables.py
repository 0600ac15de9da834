"""Random tables: read as ESPnet reads them, or refused with file and line."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

from espnet2.fileio.read_text import read_2columns_text

from espnet_lole.cli.main import main
from espnet_lole.data.kaldi import read_table, write_table

EXAMPLES = int(os.environ.get("LOLE_FUZZ", "300"))
ODD = "\u00a0 \u3000 \u0085 \u2028 \u2029 \u200b \ufeff \x0b \x0c \x1c \x00 \u00ad \u0301".split(" ")
LETTERS = [*"ab1.-_/", "ü", "ſ", "क", "ी", "好", "😀"]


def random_string(rng: random.Random, odd: float) -> str:
    """Make a string of up to five characters, with this share of odd ones."""
    return "".join(rng.choice(ODD if rng.random() < odd else LETTERS) for _ in range(rng.randint(1, 5)))


def random_table(rng: random.Random) -> bytes:
    """Make the bytes of a table: most of it well formed."""
    encoding = rng.choice(["utf-8"] * 8 + ["utf-8-sig", "latin-1", "utf-16"])
    end = rng.choice(["\n"] * 4 + ["\r\n", "\r"])
    lines = []
    for _ in range(rng.randint(0, 5)):
        words = [random_string(rng, 0.1) for _ in range(rng.randint(0, 3))]
        separator = rng.choice([" ", " ", " ", "\t", "  "])
        lines.append(separator.join([random_string(rng, 0.03), *words]) + rng.choice(["", "", " "]))
    text = end.join([*lines, ""] if rng.random() < 0.8 else lines)
    return text.encode(encoding, errors="replace")


def espnets(path: Path) -> dict[str, str] | None:
    """Read a table with ESPnet; None where it refuses it."""
    try:
        return {key: " ".join(value.split()) for key, value in read_2columns_text(path).items()}
    except (RuntimeError, ValueError, IndexError, UnicodeError):
        return None


def test_a_table_is_read_as_by_espnet_or_refused_with_file_and_line(tmp_path: Path) -> None:
    rng, file, plain = random.Random(0), tmp_path / "text", tmp_path / "plain"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(EXAMPLES):
        raw = random_table(rng)
        file.write_bytes(raw)
        lines = raw.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
        plain.write_bytes(b"".join(line for line in lines if line.strip()))  # ESPnet knows no BOM and no blank lines
        try:
            table = read_table(file)
        except ValueError as error:
            assert re.match(rf"{re.escape(str(file))}:\d+: expected ", str(error))
            outcomes["refused"] += 1
            expected = espnets(plain)
            ids = [re.split("[ \t]", line.strip(" \t"))[0] for line in raw.decode("utf-8-sig", "replace").split("\n")]
            odd = any(re.search(r"[\x00-\x1f\ufeff\s]", key) for key in ids)
            assert expected is None or odd or b"\r" in raw, raw
        else:
            outcomes["read"] += 1
            assert {key: " ".join(value.split()) for key, value in table.items()} == espnets(plain), raw
            if rng.random() < 0.1:  # a write waits for the disk
                write_table(file, table)
                assert read_table(file) == {key: table[key] for key in sorted(table)}, raw
    assert min(outcomes.values()) > EXAMPLES / 20


def test_names_of_audio_match_their_ids_or_are_refused(tmp_path: Path, capsys) -> None:
    """References under ids, transcripts under paths; one of them may have another name."""
    rng, ref, hyp = random.Random(1), tmp_path / "ref", tmp_path / "hyp"
    for _ in range(EXAMPLES // 3):
        names = [
            rng.choice("ab") + rng.choice(["", ".", ".1", ".wav", ".x.mp3", "-2"]) for _ in range(rng.randint(1, 3))
        ]
        names = list(dict.fromkeys(names))
        paths = [rng.choice(["", "x/", "x.y/", "with space/"]) + name + rng.choice([".wav", ".FLAC"]) for name in names]
        other = rng.randrange(len(names)) if rng.random() < 0.3 else None
        if other is not None:
            paths[other] = paths[other].rpartition("/")[0] + "/c.2.wav"
        ref.write_text("".join(f"{name} eins\n" for name in names))
        hyp.write_text("".join(f"{path}\teins\n" for path in paths))
        status = main(["score", "--ref", str(ref), "--hyp", str(hyp), "--lang", "de"])
        out, err = capsys.readouterr()
        stems = [re.sub(r"\.(wav|mp3)$", "", name) for name in names]
        if other is None and stems == names:
            assert status == 0 and f"in {len(names)} words" in out, (names, paths)
        else:
            assert status == 1 or stems != names
            assert status == 0 or str(tmp_path) in err

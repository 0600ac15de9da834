"""Cuts and supervisions become utterances with times in their files; what is more than that is refused."""

import gzip
import json
from pathlib import Path

import pytest

from espnet_lole.data.lhotse import read_manifest
from espnet_lole.data.manifests import Row

RECORDING = {
    "id": "r",
    "sources": [{"type": "file", "channels": [0], "source": "/r.wav"}],
    "sampling_rate": 16000,
    "num_samples": 96000,
    "duration": 6.0,
    "channel_ids": [0],
}
SUPERVISION = {"id": "s", "recording_id": "r", "start": 0.5, "duration": 2.0, "channel": 0, "text": "eins ja"}
SUPERVISION |= {"language": "German", "speaker": "spk"}
CUT = {"id": "c", "start": 1.0, "duration": 4.0, "channel": 0, "supervisions": [SUPERVISION], "recording": RECORDING}
CUT |= {"type": "MonoCut"}


def write(folder: Path, name: str, *objects: dict) -> Path:
    """Write a manifest as lhotse does."""
    path = folder / name
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(values) + "\n" for values in objects)
    return path


def test_the_times_of_a_cut_s_supervisions_count_from_its_start(tmp_path: Path) -> None:
    path = write(tmp_path, "cuts.jsonl.gz", CUT | {"supervisions": []}, CUT)
    assert read_manifest(path) == [Row(f"{path}:2", "/r.wav", "eins ja", "German", "", "spk", "s", 1.5, 3.5)]


def test_supervisions_find_their_recordings_in_the_file_beside_them(tmp_path: Path) -> None:
    path = write(tmp_path, "x_supervisions_train.jsonl.gz", SUPERVISION)
    with pytest.raises(FileNotFoundError, match="expected the recordings of .* in .*x_recordings_train.jsonl.gz"):
        read_manifest(path)
    write(tmp_path, "x_recordings_train.jsonl.gz", RECORDING)
    assert read_manifest(path) == [Row(f"{path}:1", "/r.wav", "eins ja", "German", "", "spk", "s", 0.5, 2.5)]
    with pytest.raises(ValueError, match="name the files [*]supervisions[*] and [*]recordings[*]"):
        read_manifest(write(tmp_path, "sups.jsonl.gz", SUPERVISION))
    with pytest.raises(ValueError, match=":1: its recording 'q' is not in the recordings"):
        read_manifest(write(tmp_path, "x_supervisions_train.jsonl.gz", SUPERVISION | {"recording_id": "q"}))


COMPLEX = {
    "a cut of several": {"type": "MixedCut", "tracks": []},
    "a changed speed": CUT | {"recording": RECORDING | {"transforms": [{"name": "Speed"}]}},
    "two channels": CUT | {"recording": RECORDING | {"sources": [RECORDING["sources"][0] | {"channels": [0, 1]}]}},
    "a command": CUT | {"recording": RECORDING | {"sources": [RECORDING["sources"][0] | {"type": "command"}]}},
    "no recording": CUT | {"recording": None},
}


@pytest.mark.parametrize("kind", COMPLEX)
def test_what_is_more_than_a_part_of_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="cuts.jsonl.gz:1: expected a (MonoCut|recording of one file)"):
        read_manifest(write(tmp_path, "cuts.jsonl.gz", COMPLEX[kind]))

"""Sets of `datasets` become rows, and audio that they contain becomes files as it is."""

import errno
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets")

from espnet_lole.data.hub import is_dataset, read_dataset  # noqa: E402
from espnet_lole.data.manifests import Row, parse_rows  # noqa: E402


def make(folder: Path) -> "datasets.DatasetDict":
    """Return sets of three utterances whose audio is bytes that nobody decodes."""
    for number in range(3):
        (folder / f"c{number}.mp3").write_bytes(b"audio %d" % number)
    columns = {"audio": [str(folder / f"c{number}.mp3") for number in range(3)], "sentence": ["eins", "zwei", "drei"]}
    columns |= {"locale": ["de"] * 3, "client_id": ["s", "s", "t"]}
    whole = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
    return datasets.DatasetDict(train=whole.select([0]), validation=whole.select([1]), test=whole.select([2]))


def read(path: Path, split: str, extracted: Path) -> list[Row]:
    assert is_dataset(path)
    return parse_rows(read_dataset(path, split, extracted), path)


def test_sets_saved_to_disk_are_found_by_their_names_and_their_audio_is_written_to_files(tmp_path: Path) -> None:
    make(tmp_path).save_to_disk(tmp_path / "saved")
    for number, split in enumerate(("train", "dev", "test")):
        (row,) = read(tmp_path / "saved", split, tmp_path / "data" / split)
        assert (row.text, row.language, row.speaker) == (["eins", "zwei", "drei"][number], "de", "sst"[number])
        assert Path(row.audio) == tmp_path / "data" / split / f"0000000-c{number}.mp3"
        assert Path(row.audio).read_bytes() == b"audio %d" % number


def test_parquet_files_are_read_alone_or_as_sets_of_a_folder(tmp_path: Path) -> None:
    for split, data in make(tmp_path).items():
        data.to_parquet(tmp_path / "sets" / "data" / f"{split}-00000-of-00001.parquet")
        data.to_parquet(tmp_path / f"{split}.parquet")
    (row,) = read(tmp_path / "sets", "dev", tmp_path / "data")
    assert (row.text, Path(row.audio).name) == ("zwei", "c1.mp3")
    (row,) = read(tmp_path / "test.parquet", "train", tmp_path / "data")
    assert (row.text, Path(row.audio).read_bytes()) == ("drei", b"audio 2")


def test_a_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    sets = make(tmp_path)
    del sets["validation"]
    sets.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"expected one set dev \(valid validation\), got train, test"):
        read(tmp_path / "saved", "dev", tmp_path)
    with pytest.raises(OSError, match="hf:nobody/nothing cannot be read: .*; check the name and the network"):
        read(Path("hf:nobody/nothing"), "train", tmp_path)


def test_arrays_in_the_place_of_audio_files_are_refused(tmp_path: Path) -> None:
    arrays = [{"array": [0.0, 0.1], "sampling_rate": 16000}]
    datasets.Dataset.from_dict({"audio": arrays, "text": ["ja"]}).save_to_disk(tmp_path / "arrays")
    with pytest.raises(ValueError, match="row 0 of train: expected audio as a file or its bytes, got array"):
        read(tmp_path / "arrays", "train", tmp_path)


def test_other_folders_are_not_of_datasets(tmp_path: Path) -> None:
    assert not is_dataset(tmp_path) and not is_dataset(tmp_path / "none")


def test_audio_that_cannot_be_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path).save_to_disk(tmp_path / "saved")
    write = Path.write_bytes

    def write_half(path: Path, content: bytes) -> None:
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        with pytest.raises(OSError, match="cannot write .*0000000-c0.mp3: No space left on device"):
            read(tmp_path / "saved", "train", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []

"""Nothing of the user's is deleted: outputs are new, empty, or what this package made and nobody changed."""

import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest
from systems import make_recipe

from espnet_lole.atomic_io import atomic_folder
from espnet_lole.bin.lole_data import main as lole_data
from espnet_lole.cli.main import main
from espnet_lole.lole.adapters import CONFIG, WEIGHTS
from espnet_lole.ownership import MARKER, check_output, check_output_file
from espnet_lole.train.record import check_experiment

EXAMPLES = int(os.environ.get("LOLE_FUZZ", "300"))


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Return every file's content, every link's target, and every folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = f"-> {os.readlink(path)}" if path.is_symlink() else path.is_dir() or path.read_bytes()
    return found


def write(folder: Path, text: str) -> None:
    with atomic_folder(folder) as made:
        (made / "sub").mkdir()
        (made / "sub" / "file").write_text(text)


@pytest.fixture
def place(tmp_path, recipe):
    """A folder with a trained student, its backbone and other files of a user."""
    (tmp_path / "work").mkdir()
    for name in ("tiny", "exp"):
        shutil.copytree(recipe / name, tmp_path / "work" / name)
    (tmp_path / "work" / "thesis.tex").write_text("years")
    (tmp_path / "work" / "link").symlink_to("exp")
    (tmp_path / "work" / "here").mkdir()
    return tmp_path / "work"


@pytest.mark.parametrize("form", ["folder", "merged", "ctranslate2"])
@pytest.mark.parametrize(
    "output",
    ["exp/student", "exp", ".", "..", "exp/student/out", "exp/student/adapters", "link", "link/student", "tiny",
     "tiny/out", "thesis.tex", "here"],
)  # fmt: skip
def test_an_export_never_goes_over_into_or_around_its_input(place, monkeypatch, form, output):
    if form == "ctranslate2":
        pytest.importorskip("ctranslate2")
    monkeypatch.chdir(place / "here" if output == "here" else place)
    before = snapshot(place)
    target = str(place / output)
    assert main(["export", str(place / "exp" / "student"), target, "--format", form]) == 1
    assert snapshot(place) == before


def test_an_export_replaces_its_own_folder_until_something_in_it_changes(place, capsys):
    command = ["export", str(place / "exp" / "student"), str(place / "out")]
    assert main(command) == 0 and main(command) == 0
    for change in (
        lambda: (place / "out" / "README.md").write_text("my own card"),
        lambda: (place / "out" / "backbone" / "notes").write_text(""),
        lambda: (place / "out" / "adapters" / "mine").mkdir(),
    ):
        assert main(command) == 0
        change()
        before = snapshot(place)
        assert main(command) == 1 and "were changed since" in capsys.readouterr().err
        assert snapshot(place) == before
        shutil.rmtree(place / "out")


def test_an_archive_replaces_only_an_archive_of_an_export(place, capsys):
    command = ["export", str(place / "exp" / "student"), str(place / "out.zip")]
    assert main(command) == 0 and main(command) == 0
    with zipfile.ZipFile(place / "out.zip", "w") as archive:
        archive.writestr("photos/1.jpg", "x")
    before = snapshot(place)
    assert main(command) == 1 and "out.zip exists already" in capsys.readouterr().err
    assert snapshot(place) == before


def test_a_file_replaces_none_unless_the_user_says_so(tmp_path):
    check_output_file(tmp_path / "a")
    (tmp_path / "a").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("a", "dangling"):
        with pytest.raises(ValueError, match=f"{name} exists already: name a new file"):
            check_output_file(tmp_path / name)
    check_output_file(tmp_path / "a", overwrite=True)
    with pytest.raises(ValueError, match="exists already"):
        check_output_file(tmp_path, overwrite=True)


def test_transcripts_replace_no_file_before_any_work(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("corrected by hand")
    command = ["transcribe", "a.wav", "--model", str(tmp_path / "none"), "--output_dir", str(tmp_path)]
    assert main(command) == 1 and "a.txt exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 1 and "a.txt" not in capsys.readouterr().err


def test_a_kaldi_directory_of_the_users_is_not_replaced(tmp_path, capsys):
    for name in ("src", "dst"):
        (tmp_path / name).mkdir()
        for table in ("wav.scp", "text", "utt2spk", "utt2lang"):
            (tmp_path / name / table).write_text("a de\n" if table == "utt2lang" else "a x\n")
    before = snapshot(tmp_path)
    for dst in ("dst", "src", "src/sub", "."):
        with pytest.raises(SystemExit):
            lole_data(["perturb", "--src", str(tmp_path / "src"), "--dst", str(tmp_path / dst), "--factors", "0.9 1.0"])
        assert snapshot(tmp_path) == before
    made = ["perturb", "--src", str(tmp_path / "src"), "--dst", str(tmp_path / "new"), "--factors", "0.9 1.0"]
    lole_data(made)
    lole_data(made)
    (tmp_path / "new" / "text").write_text("corrected\n")
    before = snapshot(tmp_path)
    with pytest.raises(SystemExit):
        lole_data(made)
    assert snapshot(tmp_path) == before


def test_folders_of_older_versions_are_replaced_only_if_they_hold_nothing_else(tmp_path):
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).write_text("")
    check_output(tmp_path, known=(CONFIG, WEIGHTS))
    (tmp_path / "notes").write_text("")
    with pytest.raises(ValueError, match="not made by this program"):
        check_output(tmp_path, known=(CONFIG, WEIGHTS))


def test_a_training_goes_only_where_a_training_is(tmp_path):
    recipe = make_recipe(tmp_path)
    check_experiment(recipe / "exp" / "student")
    check_experiment(tmp_path / "new")
    (tmp_path / "launched").mkdir()
    (tmp_path / "launched" / "train.log").write_text("")
    (tmp_path / "launched" / "q").mkdir()  # of slurm.pl
    check_experiment(tmp_path / "launched")
    (tmp_path / "launched" / "3epoch.pth").write_text("another's")
    with pytest.raises(ValueError, match="launched exists, and holds files"):
        check_experiment(tmp_path / "launched")
    (tmp_path / "notes" / "launch.log").mkdir(parents=True)
    with pytest.raises(ValueError, match="notes exists, and holds files"):
        check_experiment(tmp_path / "notes")


def test_leftovers_of_a_killed_writer_are_removed_but_not_a_users_folder_of_that_name(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "mine").write_text("x")
    with pytest.raises(ValueError, match="partial was not made by this program"):
        write(tmp_path / "out", "new")
    (tmp_path / ".out.partial" / MARKER).touch()
    write(tmp_path / "out", "new")
    (tmp_path / ".out.previous").mkdir()
    (tmp_path / ".out.previous" / "mine").write_text("x")
    with pytest.raises(ValueError, match="previous exists, and holds files"):
        write(tmp_path / "out", "newer")
    assert (tmp_path / "out" / "sub" / "file").read_text() == "new"


def test_no_file_of_a_user_is_lost_in_any_tree(tmp_path):
    """Random trees, links, inputs and changes: afterwards each file is as it was, or was written by this package."""
    rng, outcomes = random.Random(0), {"written": 0, "refused": 0}
    names = ["a", "b", "c"]
    for round_ in range(EXAMPLES):
        root = tmp_path / "root"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        folders = [root]
        for _ in range(rng.randrange(6)):
            path = rng.choice(folders) / rng.choice(names)
            kind = rng.choice(["folder", "file", "link", "own", "changed"])
            if os.path.lexists(path):
                continue
            if kind == "folder":
                path.mkdir()
                folders.append(path)
            elif kind == "file":
                path.write_text(f"user {round_}")
            elif kind == "link":
                path.symlink_to(os.path.relpath(rng.choice(folders), path.parent))
            else:
                write(path, "own")
                if kind == "changed":
                    (path / rng.choice(["new", "sub/file"])).write_text(f"user's {round_}")
        output = rng.choice(folders) / rng.choice([*names, "a/b", "a/sub", "b/.."])
        inputs = [rng.choice(folders) / rng.choice(names) for _ in range(rng.randrange(3))]
        before, read = snapshot(root), [source for source in inputs if source.exists()]
        try:
            with atomic_folder(output, inputs) as made:
                (made / "result").write_text("new")
        except (ValueError, OSError):
            outcomes["refused"] += 1
            assert snapshot(root) == before
        else:
            outcomes["written"] += 1
            after, lost = snapshot(root), os.path.relpath(os.path.realpath(output), root)
            users = {n: x for n, x in before.items() if isinstance(x, bytes) and x.startswith(b"user")}
            assert all(after.get(name) == content for name, content in users.items())
            assert {n for n in before if n not in after and not n.startswith(f"{lost}/")} == set()
            assert all(source.exists() for source in read)
    print(outcomes)
    assert min(outcomes.values()) > EXAMPLES / 20

"""How the recipe starts jobs: back ends, their options, and jobs on this machine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from recipes import ROOT

RECIPE = ROOT / "egs2" / "lole" / "asr1"
RUN_LOCAL = RECIPE / "lole_utils" / "run_local.sh"
SCRIPTS = {"stdout": "stdout.pl", "sge": "queue.pl", "pbs": "pbs.pl", "slurm": "slurm.pl", "ssh": "ssh.pl"}
CONFIGS = {"slurm": "sbatch", "queue": "qsub", "pbs": "qsub"}


def source(script: str, command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command after sourcing a script of the recipe."""
    run = ["bash", "-euc", f". ./{script}; {command}"]
    return subprocess.run(run, cwd=RECIPE, env=os.environ | env, capture_output=True, text=True)


@pytest.fixture
def espnet(tmp_path) -> Path:
    """The places of the scripts in an ESPnet checkout."""
    for folder, names in (
        ("egs2/TEMPLATE/asr1/utils", ["slurm.pl", "queue.pl", "pbs.pl", "ssh.pl"]),
        ("utils", ["stdout.pl"]),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / folder / name).write_text("#!/bin/sh\n")
            (tmp_path / folder / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("root", ["ESPNET_ROOT", "MAIN_ROOT"])
@pytest.mark.parametrize("backend", SCRIPTS)
def test_the_script_of_a_back_end_is_found_in_a_checkout(espnet, backend, root):
    env = {"ESPNET_ROOT": "", "MAIN_ROOT": ""} | {root: str(espnet), "cmd_backend": backend}
    done = source("cmd.sh", 'echo "${train_cmd} ${cuda_cmd} ${decode_cmd}"; command -v "${cuda_cmd}"', **env)
    *names, path = done.stdout.split()
    assert names == 3 * [SCRIPTS[backend]] and path.startswith(str(espnet))


@pytest.mark.parametrize("backend", [*SCRIPTS, "jhu"])
def test_a_back_end_whose_script_is_missing_is_refused_before_anything_starts(backend, tmp_path):
    env = {"ESPNET_ROOT": str(tmp_path), "MAIN_ROOT": "", "PATH": "/usr/bin:/bin", "cmd_backend": backend}
    done = source("cmd.sh", "echo started", **env)
    assert done.returncode == 1 and not done.stdout
    assert re.fullmatch(rf"error: cmd_backend {backend} needs \S+\.pl, .*: set ESPNET_ROOT .*\n", done.stderr)


def test_a_back_end_that_is_none_is_refused():
    done = source("cmd.sh", "echo started", cmd_backend="pbs2")
    assert done.returncode == 1 and "unknown cmd_backend 'pbs2': choose local, stdout, sge," in done.stderr


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cluster_knows_the_options_that_the_launcher_gives(name):
    """ESPnet's launcher gives --gpu, --num_threads and --num_nodes; an option that is not described is refused."""
    text = (ROOT / "conf" / f"{name}.conf").read_text()
    assert re.search(rf"^command {CONFIGS[name]} ", text, re.MULTILINE)
    for option in ("gpu", "num_threads", "num_nodes", "mem"):
        assert re.search(rf"^option {option}=\* .*\$0", text, re.MULTILINE), option
    limits = [line for line in text.splitlines() if "time" in line and not line.startswith("option time=")]
    assert not limits  # the limit of the cluster holds


def test_a_job_finds_the_package_and_its_environment_with_nothing_but_path(tmp_path):
    """Slurm's jobs source path.sh."""
    (tmp_path / "path.sh").symlink_to(RECIPE / "path.sh")
    command = ". ./path.sh; python3 -c 'import espnet_lole; print(espnet_lole.__path__[0])'; printenv OMP_NUM_THREADS"
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    folder, threads = done.stdout.split()
    assert folder == str(ROOT / "espnet_lole") and int(threads) >= 1


def test_srun_gets_the_cores_of_its_job():
    done = source("path.sh", 'echo "${SRUN_CPUS_PER_TASK}"', SLURM_CPUS_PER_TASK="8")
    assert done.stdout == "8\n"


ENDS = {
    "ValueError: broken": [
        "ValueError: broken",
        "slurmstepd: error: *** STEP 7.0 ON node1 CANCELLED AT 2026-01-31T12:00:00 ***",
        "srun: error: node1: task 0: Exited with exit code 1",
        "[E] gloo/transport/tcp/pair.cc RuntimeError: Connection closed by peer",
    ],
    "sbatch: error: invalid partition specified: gpu": ["sbatch: error: invalid partition specified: gpu"],
    "slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-01-31T12:00:00 DUE TO TIME LIMIT ***": [
        "1epoch started",
        "slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-01-31T12:00:00 DUE TO TIME LIMIT ***",
    ],
    "it ended with status 9": ["1epoch started"],
}
"""What is said -> the lines of a log."""


@pytest.mark.parametrize("said", ENDS)
def test_the_reason_is_found_in_the_log_of_the_job_that_failed(tmp_path, said):
    (tmp_path / "1").write_text("Error: a warning\n# Finished at noon with status 0\n")
    (tmp_path / "2").write_text("\n".join([*ENDS[said], "# Finished at noon with status 1\n"]))
    done = source("lole_utils/jobs.sh", f"fail_job decoding 9 {tmp_path}/none {tmp_path}/1 {tmp_path}/2")
    error, log = done.stderr.splitlines()
    assert done.returncode == 1 and error == f"error: decoding failed: {said}" and log.endswith(f"{tmp_path}/2")


def run_local(folder: Path, *words: str, **env: str) -> int:
    return subprocess.run([RUN_LOCAL, *words], cwd=folder, env=os.environ | env, timeout=60).returncode


def logged(file: Path) -> str:
    return "".join(line + "\n" for line in file.read_text().splitlines() if not line.startswith("#"))


def test_jobs_run_at_the_same_time_and_share_the_threads(tmp_path):
    """Each waits for the other's file."""
    wait = (
        'touch started.JOB; while [ "$(ls started.* | wc -l)" -lt 2 ]; do sleep 0.05; done; echo JOB "$OMP_NUM_THREADS"'
    )
    assert run_local(tmp_path, "--gpu", "0", "JOB=1:2", "log/x.JOB.log", "bash", "-c", wait, OMP_NUM_THREADS="5") == 0
    assert [logged(tmp_path / "log" / f"x.{job}.log") for job in (1, 2)] == ["1 3\n", "2 3\n"]


def test_jobs_with_a_gpu_have_one_each_and_wait_for_one(tmp_path):
    check = (
        'mkdir "gpu$CUDA_VISIBLE_DEVICES"; sleep 0.2; rmdir "gpu$CUDA_VISIBLE_DEVICES"; echo "$CUDA_VISIBLE_DEVICES"'
    )
    options = ["--gpu", "1", "JOB=1:5", "JOB.log", "bash", "-c", check]
    assert run_local(tmp_path, *options, CUDA_VISIBLE_DEVICES="4,7") == 0
    assert [logged(tmp_path / f"{job}.log") for job in range(1, 6)] == ["4\n", "7\n", "4\n", "7\n", "4\n"]


def test_a_failed_job_fails_all_after_the_others_have_ended(tmp_path):
    work = '[ JOB != 2 ] || exit 3; sleep 0.2; echo "done"'
    assert run_local(tmp_path, "JOB=1:3", "JOB.log", "bash", "-c", work) == 3
    assert [logged(tmp_path / f"{job}.log") for job in (1, 2, 3)] == ["done\n", "", "done\n"]
    assert "# ended with code 3 " in (tmp_path / "2.log").read_text()


def test_a_single_command_keeps_its_words_and_its_gpus(tmp_path):
    command = ["bash", "-c", 'echo "$1" "$CUDA_VISIBLE_DEVICES"', "x", "JOB  a"]
    assert run_local(tmp_path, "--gpu", "2", "log", *command, CUDA_VISIBLE_DEVICES="4,7") == 0
    assert logged(tmp_path / "log") == "JOB  a 4,7\n"

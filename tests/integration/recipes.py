"""A copy of the recipe in a folder of its own, with configurations for a tiny random Whisper."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from conftest import tiny_whisper
from safetensors.torch import load_file

from espnet_lole.train.checkpoints import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"max_epoch": 2, "batch_bins": 640000}
"""Smaller batches would leave a last one of one utterance, too few for two processes."""
RANK_2, RANK_4 = {"expert_conf": {"rank": 2, "alpha": 4.0}}, {"expert_conf": {"rank": 4, "alpha": 8.0}}
CONFIGS = {
    "train": {},
    "train_experts": SMALL | RANK_2,
    "train_mole": SMALL | {"fusion_conf": {"shared_layers": 2}, "classifier_conf": {"dropout": 0.0}},
    "train_student": SMALL | RANK_4,
    "train_multilingual": SMALL | RANK_2,
    "train_multilingual_r64": RANK_4,
    "train_full": SMALL,
    "train_espnet": SMALL,
    "train_espnet_whisper": SMALL,
}
"""Configuration of conf/mini -> keys to change; `train` is written to `tiny.yaml`, `train_mole` to `tiny_mole.yaml`."""


class Recipe:
    """A copy of the recipe's scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = ROOT / "egs2" / "lole" / "asr1"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("data", "dump", "exp", "models"))
        tiny_whisper().save_pretrained(folder / "tiny")
        for name, changes in CONFIGS.items():
            conf = yaml.safe_load((ROOT / "conf" / "mini" / f"{name}.yaml").read_text()) | changes
            (folder / f"{name.replace('train', 'tiny')}.yaml").write_text(yaml.safe_dump(conf))
        (folder / "decode_tiny.yaml").write_text("{beam_size: 2, maxlenratio: 0.05, batch_seconds: 60.0}\n")

    def experiment(self, system: str, expdir: str = "exp") -> Path:
        return self.folder / expdir / f"lole_tiny_{system}_raw_lole_mini_seed0"

    def start(self, *options: str, script: str = "run.sh") -> subprocess.Popen[str]:
        """Start a script in a process group of its own."""
        command = [f"./{script}", "--python", sys.executable, "--inference_config", "decode_tiny.yaml"]
        if script == "run.sh":
            langs = [] if "--langs" in options else ["--langs", "de tr"]
            command += ["--backbone", "tiny", "--asr_config", "tiny.yaml", "--nj", "2", *langs]
        else:
            command += ["--run_args", "--backbone tiny --asr_config tiny.yaml --nj 2"]
        env = os.environ | {"LOLE_ROOT": str(ROOT), "HF_HUB_OFFLINE": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*command, *options], cwd=self.folder, env=env, start_new_session=True, **pipes)

    def run(self, *options: str, script: str = "run.sh", fails: bool = False) -> str:
        """Run a script to its end and return what it prints."""
        with self.start(*options, script=script) as process:
            try:
                printed = process.communicate(timeout=900)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
                raise
        assert (process.returncode != 0) == fails, printed[-3000:]
        return printed

    def adapters(self, experiment: Path) -> dict[str, dict[str, torch.Tensor]]:
        """Read the adapters of an experiment."""
        return {file.parent.name: load_file(file) for file in experiment.glob("adapters/*/adapter_model.safetensors")}

    def losses(self, experiment: Path, epoch: int) -> dict[tuple[str, str], float]:
        """Read the losses of an epoch's training and validation."""
        phases = read_checkpoint(experiment / "checkpoint.pth")["reporter"]["stats"][epoch]
        return {
            (phase, key): float(v)
            for phase, values in phases.items()
            for key, v in values.items()
            if key.startswith("loss")
        }

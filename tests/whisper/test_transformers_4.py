"""The tests of what meets transformers' layers, caches and tokenizers, in the environment of ESPnet's own Whisper."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-espnet-whisper" / "bin" / "python"
FILES = "whisper/test_model.py inference/test_kv_cache.py lole/test_kd.py export/test_bundle.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="transformers 4 is for ESPnet 202511, before Python 3.12")
@pytest.mark.skipif(not PYTHON.is_file(), reason="needs make env-espnet-whisper")
def test_transformers_4_is_driven_as_5_is():
    command = [PYTHON, "-c", "import transformers; print(transformers.__version__)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("4.")
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{file}" for file in FILES.split())]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]

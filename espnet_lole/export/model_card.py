"""The model card: a README.md with the header that hubs read."""

from __future__ import annotations

from pathlib import Path

import yaml

from espnet_lole.export.metadata import ModelMetadata

DESCRIPTIONS = {
    "experts": "One LoRA expert per language on a frozen Whisper. The language of each utterance must be given.",
    "mole": "LoRA MoLE: language experts on a frozen Whisper, shared shallow layers, and a language classifier.",
    "student": "One LoRA adapter for all languages on a frozen Whisper, distilled from language experts.",
    "multilingual": "One LoRA adapter for all languages on a frozen Whisper.",
    "full": "A Whisper of which all weights were fine-tuned on these languages.",
    "zero_shot": "A Whisper.",
}
SCENARIOS = {
    "aware": "language given",
    "agnostic": "language identified",
    "transformers": "language given, in the pipeline of transformers",
}
USES = {
    "espnet_lole": """from espnet_lole import Speech2Text

s2t = Speech2Text.from_pretrained("FOLDER_OF_THIS_FILE")
for result in s2t.transcribe(["a.wav", "b.wav"]{lang}):
    print(result.language, result.text)
""",
    "transformers": """from transformers import pipeline

recognize = pipeline("automatic-speech-recognition", "FOLDER_OF_THIS_FILE")
print(recognize("a.wav", generate_kwargs={{"language": "{first}"}})["text"])
""",
}
"""Library -> how a system runs in it."""


def model_card(
    metadata: ModelMetadata, name: str, licence: str, data: str, library: str = "espnet_lole", use: str | None = None
) -> str:
    """Write the model card of a system.

    Args:
        metadata: what is known of the system.
        name: title of the card.
        licence: identifier of the licence on hubs, e.g. ``apache-2.0``.
        data: description of the training data; may be empty.
        library: that the exported files are for.
        use: Markdown on how the files are used; None: the lines of ``USES``.
    """
    local = Path(metadata.backbone).exists()
    header = {
        "language": list(metadata.languages),
        "license": licence,
        "library_name": library,
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["whisper", *(["lora"] if metadata.ranks else []), "espnet", metadata.system],
    } | ({} if local else {"base_model": metadata.backbone})
    topics = metadata.describe() | {"backbone": Path(metadata.backbone).name if local else metadata.backbone}
    system = "\n".join(f"- {topic}: {text}" for topic, text in topics.items())
    first = metadata.languages[0]
    if use is None:
        lang = f', langs="{first}"' if metadata.system == "experts" else ""
        use = f"```python\n{USES[library].format(lang=lang, first=first)}```"
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---

# {name}

{DESCRIPTIONS[metadata.system]}

## Use

{use}

## System

{system}

## Data

{_data(metadata.history.hours, data)}

## Results

{_results(metadata.history.error_rates)}

## Licence

{licence}
"""


def _data(hours: dict[str, float], data: str) -> str:
    """Describe the training data, with a table of the hours by language."""
    rows = [["language", "hours of training"], *([lang, f"{value:.2f}"] for lang, value in hours.items())]
    return "\n\n".join(filter(None, [data, _table(rows) if hours else ""])) or "Not described."


def _results(error_rates: dict[str, dict[str, float]]) -> str:
    """Tabulate the error rates by language and scenario."""
    if not error_rates:
        return "Not scored."
    rows = [["language", *(SCENARIOS[scenario] for scenario in error_rates)]]
    for lang in dict.fromkeys(lang for rates in error_rates.values() for lang in rates):
        rows.append([lang, *(f"{rates[lang]:.1f}" if lang in rates else "" for rates in error_rates.values())])
    metric = "CER of languages written without spaces, WER of the others, in percent, on the test sets."
    return f"{metric}\n\n{_table(rows)}"


def _table(rows: list[list[str]]) -> str:
    """Format rows as a Markdown table, the first as its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])

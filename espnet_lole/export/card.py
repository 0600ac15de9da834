"""The card of a model for a hub: a README with the head that hubs read."""

from __future__ import annotations

from pathlib import Path

import yaml

from espnet_lole.export.facts import Facts

WHAT = {
    "experts": "One LoRA expert per language on a frozen Whisper; it has to be told the language.",
    "mole": "LoRA MoLE: language experts on a frozen Whisper, shared shallow layers, and a classifier that finds the language.",
    "student": "One LoRA for all languages on a frozen Whisper, distilled from language experts.",
    "whisper": "A Whisper.",
}


def card(facts: Facts, name: str, licence: str, data: str) -> str:
    """The README of a system.

    Args:
        facts: on the system.
        name: its title.
        licence: as hubs abbreviate it, e.g. ``apache-2.0``.
        data: what it was trained on, in words; empty: not told.
    """
    head = {
        "language": list(facts.languages),
        "license": licence,
        "library_name": "espnet_lole",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["whisper", "lora", "espnet", facts.kind],
    }
    if not Path(facts.backbone).exists():
        head["base_model"] = facts.backbone
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {name}\n\n{WHAT[facts.kind]}\n", _use(facts), _system(facts)]
    return "\n".join([*parts, _data(facts, data), _figures(facts), f"## Licence\n\n{licence}\n"])


def _use(facts: Facts) -> str:
    langs = f', langs="{facts.languages[0]}"' if facts.kind == "experts" else ""
    return f"""## Use

```python
from espnet_lole import Speech2Text

s2t = Speech2Text.from_pretrained("FOLDER_OF_THIS_FILE")
for result in s2t.transcribe(["a.wav", "b.wav"]{langs}):
    print(result.language, result.text)
```
"""


def _system(facts: Facts) -> str:
    lines = [f"Backbone: {Path(facts.backbone).name if Path(facts.backbone).exists() else facts.backbone}."]
    lines += [f"Adapter {name}: rank {rank}, {facts.parameters[name]:,} parameters." for name, rank in facts.ranks.items()]
    if facts.shared_layers is not None:
        lines.append(f"Encoder layers 1 to {facts.shared_layers} are shared by all languages.")
    if facts.epochs is not None:
        figures = ", ".join(f"{key} {value:g}" for key, value in facts.training.items())
        lines.append(f"Trained for {facts.epochs} epochs; on the validation set: {figures}.")
    return "## System\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def _data(facts: Facts, data: str) -> str:
    if not (data or facts.hours):
        return "## Data\n\nNot told.\n"
    table = "| language | hours of training |\n|---|---|\n" + "".join(f"| {k} | {v:.2f} |\n" for k, v in facts.hours.items())
    return "## Data\n\n" + "\n\n".join([data] * bool(data) + [table] * bool(facts.hours)).rstrip() + "\n"


def _figures(facts: Facts) -> str:
    if not facts.errors:
        return "## Figures\n\nNot scored.\n"
    scenarios = list(dict.fromkeys(scenario for scenario, _ in facts.errors))
    languages = list(dict.fromkeys(lang for _, lang in facts.errors))
    given = {"aware": "language given", "agnostic": "language found"}
    rows = [f"| language | {' | '.join(given[s] for s in scenarios)} |", "|---" * (len(scenarios) + 1) + "|"]
    for lang in languages:
        cells = [f"{facts.errors[s, lang]:.1f}" if (s, lang) in facts.errors else "" for s in scenarios]
        rows.append(f"| {lang} | {' | '.join(cells)} |")
    told = "Error in percent on the test sets: by character in languages written without spaces, else by word.\n\n"
    return "## Figures\n\n" + told + "\n".join(rows) + "\n"

"""How an export for ESPnet is used: the lines of Python that decode to the texts of ``lole transcribe``."""

from __future__ import annotations

from transformers import WhisperConfig

from espnet_lole.export.metadata import ModelMetadata
from espnet_lole.inference.search import SearchConfig
from espnet_lole.whisper.features import SAMPLE_RATE
from espnet_lole.whisper.model import Whisper, silence_samples

USE = """```python
from pathlib import Path

{imports}from espnet2.bin.asr_inference import Speech2Text

folder = Path("FOLDER_OF_THIS_FILE").resolve()
{register}s2t = Speech2Text(
    folder / "config.yaml",
    folder / "valid.acc.best.pth",
    lang_prompt_token="<|{lang}|> <|transcribe|>",
    ctc_weight=0.0,
    beam_size={beam_size},
    normalize_length=True,
    maxlenratio={maxlenratio},
)
speech, rate = soundfile.read("a.wav")  # 16 kHz, mono, up to 30 s
{silence}text = s2t(speech)[0][0]
print(text.rpartition("|>")[2].strip())  # some versions leave the prompt in
```

This is a stock model of ESPnet, whose Whisper needs ESPnet's fork of openai-whisper
(`tools/installers/install_whisper.sh`). {origin}
The prompt names the language of the speech, which must be given. `espnet2.bin.asr_inference` has the same options;
decode one utterance at a time there.
{notes}"""
REGISTER = """whisper._MODELS["{name}"] = next(folder.glob("*/{name}.pt")).as_uri()
whisper._ALIGNMENT_HEADS["{name}"] = None
"""
PUBLISHED = "It loads OpenAI's weights of this size, and replaces them by these."
CUSTOM = "It knows no Whisper of these dimensions; the lines after `folder` name a file of zeros that has them."
SILENCE = """
**Append {seconds:g} s of silence** to the speech as above: the system was trained with it, and ESPnet appends none.
"""
OTHER_INPUT = """
ESPnet pads the input to 30 s here (`do_pad_trim`), as a share of the training batches was. lole decodes this system
with `pad_to: {pad_to}`, so that single words may differ; at 30 s it was not scored.
"""


def describe_use(whisper: Whisper, custom: bool, lang: str, search: SearchConfig) -> str:
    """Describe how ESPnet decodes an export, in Markdown.

    Args:
        whisper: what is exported.
        custom: its dimensions are none of the published ones.
        lang: language of the example.
        search: options that the system was scored with.
    """
    config, to_30s = whisper.model.config, pads_to_30s(whisper)
    silence = 0 if to_30s else silence_samples(whisper.pad_to)
    modules = ["numpy"] * bool(silence) + ["soundfile"] + ["whisper"] * custom
    notes = SILENCE.format(seconds=silence / SAMPLE_RATE) if silence else ""
    if to_30s and whisper.pad_to != "30s":
        notes = OTHER_INPUT.format(pad_to=whisper.pad_to)
    return USE.format(
        imports="".join(f"import {module}\n" for module in modules),
        register=REGISTER.format(name=size_name(config)) if custom else "",
        lang=lang,
        beam_size=search.beam_size,
        maxlenratio=search.maxlenratio or -float(config.max_target_positions // 2),
        silence=f"speech = numpy.pad(speech, (0, {silence}))\n" if silence else "",
        origin=CUSTOM if custom else PUBLISHED,
        notes=notes,
    ).rstrip()


def comparable_rates(whisper: Whisper, metadata: ModelMetadata) -> dict[str, dict[str, float]]:
    """Return the error rates that ESPnet has, too: the language given, and the input that was scored."""
    if pads_to_30s(whisper) and whisper.pad_to != "30s":
        return {}
    rates = metadata.history.error_rates.get("aware", {})
    known = {lang: rate for lang, rate in rates.items() if lang in metadata.languages}
    return {"aware": known} if known else {}


def pads_to_30s(whisper: Whisper) -> bool:
    """Tell whether ESPnet pads the input to 30 s: it can do that or nothing, and needs it if training ended in silence.

    A system that was trained with some silence and, in a share of its batches, with 30 s of it, is decoded at 30 s.
    """
    return whisper.pad_to == "30s" or bool(silence_samples(whisper.pad_to) and whisper.share_30s)


def size_name(config: WhisperConfig) -> str:
    """Return a name for a Whisper of other dimensions than the published ones."""
    return f"whisper-{config.d_model}-{config.encoder_layers}-{config.decoder_layers}"

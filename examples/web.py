"""A web page to try systems: record or upload, read the text and the language, compare."""

from __future__ import annotations

import html
from collections.abc import Mapping

import gradio
import soundfile

from espnet_lole.data.audio import AudioError
from espnet_lole.inference.results import Result
from espnet_lole.inference.speech2text import Speech2Text

FOUND = "find it"
MOST_SAMPLES_PER_SECOND = 2 * 48_000
"""Of audio that is taken, over all channels: a small file may hold eight channels at 655 kHz, and is read as a whole."""
KEPT_SECONDS = 3600
"""After this time, uploads are deleted."""


def build_page(systems: Mapping[str, Speech2Text], max_minutes: float) -> gradio.Blocks:
    """The page.

    Args:
        systems: by the name that the page shows.
        max_minutes: of audio that is taken.
    """
    languages = sorted({lang for s2t in systems.values() for lang in s2t.languages})
    cache = (KEPT_SECONDS // 6, KEPT_SECONDS)  # how often old uploads are looked for, and their age
    with gradio.Blocks(title="espnet_lole", analytics_enabled=False, delete_cache=cache) as page:
        gradio.Markdown("# Language experts on a frozen Whisper\nRecord or upload speech, and read what each system hears.")
        with gradio.Row():
            audio = gradio.Audio(label=f"Speech, {max_minutes:g} min at most", type="filepath", sources=["upload", "microphone"])
            lang = gradio.Dropdown([FOUND, *languages], value=FOUND, label="Language")
        button = gradio.Button("Transcribe", variant="primary", elem_id="transcribe")
        outputs = []
        with gradio.Row():
            for name in systems:
                with gradio.Column(min_width=280):
                    gradio.Markdown(f"### {html.escape(name)}")
                    outputs.append(gradio.Textbox(label="Text", lines=4, buttons=["copy"]))
                    outputs.append(gradio.Label(label="Language", num_top_classes=8))
                    outputs.append(gradio.Markdown())

        def transcribe(file: str | None, chosen: str) -> list:
            return [part for s2t in systems.values() for part in _shown(s2t, file, chosen, max_minutes)]

        button.click(transcribe, [audio, lang], outputs, concurrency_limit=1, api_name="transcribe")
    return page


def serve(page: gradio.Blocks, host: str, port: int, max_mb: int, queue: int) -> None:
    """Serve the page until interrupted.

    One request is processed at a time, at most ``queue`` wait, and uploads have at most ``max_mb`` megabytes; the others are
    refused. Without ``api_open=False``, gradio would process forty at a time of those that are posted past the queue.
    """
    page.queue(max_size=queue, api_open=False).launch(server_name=host, server_port=port, max_file_size=f"{max_mb}mb")


def _shown(s2t: Speech2Text, file: str | None, chosen: str, max_minutes: float) -> tuple[str, dict[str, float], str]:
    """What a system's column shows: text, posteriors and a note.

    Raises:
        gradio.Error: shown on the page: no speech, too much of it, or none that can be read.
    """
    if file is None:
        raise gradio.Error("Record or upload some speech first.")
    lang = None if chosen == FOUND else chosen
    if lang is None and s2t.system.kind == "experts":
        return "", {}, "Experts have to be told the language: choose it above."
    if lang is not None and lang not in s2t.languages:
        return "", {}, f"Not trained for {lang}: it knows {' '.join(s2t.languages)}."
    try:
        info = soundfile.info(file)
        if info.duration > 60 * max_minutes:
            raise gradio.Error(f"Expected {max_minutes:g} minutes at most: cut the recording, or use `lole transcribe`.")
        if info.frames * info.channels > 60 * max_minutes * MOST_SAMPLES_PER_SECOND:
            raise gradio.Error(
                f"Expected no more samples than {max_minutes:g} minutes have in stereo at 48 kHz: "
                f"lower the rate ({info.samplerate} Hz) or the channels ({info.channels}), or use `lole transcribe`."
            )
        (result,) = s2t.transcribe(file, lang)
    except (AudioError, soundfile.SoundFileError) as error:
        raise gradio.Error(f"This file cannot be read as audio: {error}") from error
    return result.text, result.posteriors or {result.language: 1.0}, _note(result)


def _note(result: Result) -> str:
    found = "given" if result.confidence is None else f"posterior {result.confidence:.2f}"
    speed = result.duration / max(result.took, 1e-9)
    return f"{result.language}, {found}; {result.duration:.1f} s of audio in {result.took:.2f} s, {speed:.0f} times real time"

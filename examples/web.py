#!/usr/bin/env python3
"""Serve a web page: record or upload speech, read the text and the language, compare systems.

Examples:
  python examples/web.py --model exp/lole_train_mole_raw_lole_mini_seed0
  python examples/web.py --model DIR --model DIR2 --langs de fr --port 8000
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_lole.data.reading import read_blocks
from espnet_lole.data.samples import AudioError
from espnet_lole.inference.results import Result
from espnet_lole.inference.speech2text import Speech2Text

try:
    import gradio
except ModuleNotFoundError:
    sys.exit("error: the web page needs gradio: pip install 'espnet_lole[web]'")

DETECT = "detect"
MAX_RATE = 96_000
"""Highest sampling rate in Hz: a small file may hold audio at 655 kHz, which takes long to read."""
SEGMENTS = {"time": "27%", "lang": "15%", "text": "58%"}
"""Columns of the table of segments, and their widths."""
UPLOAD_SECONDS = 3600
"""Age at which uploads are deleted."""


def get_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    head, _, examples = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=head, epilog=examples.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        required=True,
        help="folder of a trained system; repeat to compare several",
    )
    parser.add_argument("--langs", nargs="+", help="languages to choose from; default: those of the training")
    parser.add_argument("--config", type=Path, help="YAML of the decoding; default: as each system was scored")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 admits other machines; default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--max_mb", type=int, default=50, help="maximum size of an upload; default: 50")
    parser.add_argument("--max_minutes", type=float, default=10.0, help="maximum length of the audio; default: 10")
    parser.add_argument(
        "--queue", type=int, default=20, help="waiting requests, beyond which new ones are refused; default: 20"
    )
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Load the systems and serve the page until interrupted."""
    args = get_parser().parse_args(cmd)
    try:
        systems = load_systems(args.model, args.device, args.config, args.langs)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    serve(build_page(systems, args.max_minutes), args.host, args.port, args.max_mb, args.queue)


def load_systems(
    folders: Sequence[Path], device: str | None, config: Path | None, langs: Sequence[str] | None = None
) -> dict[str, Speech2Text]:
    """Find the systems that the page compares, by the name of their folder.

    Raises:
        ValueError: two folders have the same name, or one holds no system.
        FileNotFoundError: a folder is not there.
    """
    if len({folder.name for folder in folders}) < len(folders):
        raise ValueError(f"two folders of --model have the same name: {' '.join(map(str, folders))}; copy or link one")
    options = {"languages": langs, "device": device, "config": config}
    return {folder.name: Speech2Text.from_pretrained(folder, **options) for folder in folders}


def build_page(systems: Mapping[str, Speech2Text], max_minutes: float) -> gradio.Blocks:
    """Build the page.

    Args:
        systems: name on the page -> system.
        max_minutes: maximum length of the audio.
    """
    languages = sorted({lang for s2t in systems.values() for lang in s2t.languages})
    cache = UPLOAD_SECONDS // 6, UPLOAD_SECONDS  # interval and age at which uploads are deleted
    with gradio.Blocks(title="espnet_lole", analytics_enabled=False, delete_cache=cache) as page:
        gradio.Markdown(
            "# Language experts on a frozen Whisper\nRecord or upload speech, and read what each system hears."
        )
        with gradio.Row():
            audio = gradio.Audio(
                label=f"Speech, {max_minutes:g} min at most", type="filepath", sources=["upload", "microphone"]
            )
            lang = gradio.Dropdown([DETECT, *languages], value=DETECT, label="Language")
        button = gradio.Button("Transcribe", variant="primary", elem_id="transcribe")
        outputs = []
        with gradio.Row():
            for name in systems:
                with gradio.Column(min_width=280):
                    gradio.Markdown(f"### {html.escape(name)}")
                    outputs.append(gradio.Textbox(label="Text", lines=4, buttons=["copy"]))
                    outputs.append(gradio.Label(label="Language", num_top_classes=8))
                    outputs.append(gradio.Markdown())
                    outputs.append(
                        gradio.Dataframe(
                            headers=list(SEGMENTS), column_widths=list(SEGMENTS.values()), label="Segments", wrap=True
                        )
                    )

        def transcribe(file: str | None, choice: str) -> list:
            return [part for s2t in systems.values() for part in fill_column(s2t, file, choice, max_minutes)]

        button.click(transcribe, [audio, lang], outputs, concurrency_limit=1, api_name="transcribe")
    return page


def serve(page: gradio.Blocks, host: str, port: int, max_mb: int, queue: int) -> None:
    """Serve the page until interrupted.

    One request is processed at a time, ``queue`` requests wait, and uploads have at most ``max_mb`` megabytes; others
    are refused. Without ``api_open=False``, gradio processes up to forty requests at a time that bypass the queue.
    """
    page.queue(max_size=queue, api_open=False).launch(server_name=host, server_port=port, max_file_size=f"{max_mb}mb")


def fill_column(
    s2t: Speech2Text, file: str | None, choice: str, max_minutes: float
) -> tuple[str, dict[str, float], str, list[list[str]]]:
    """Transcribe a file for a system's column: text, posteriors, a note, and the segments with their languages.

    Raises:
        gradio.Error: there is no speech, too much of it, or it cannot be read; shown on the page.
    """
    if file is None:
        raise gradio.Error("Record or upload some speech first.")
    lang = None if choice == DETECT else choice
    if lang is None and s2t.system.system == "experts":
        return "", {}, "Experts need the language: choose it above.", []
    if lang is not None and lang not in s2t.languages:
        return "", {}, f"Not trained for {lang}, only for {' '.join(s2t.languages)}.", []
    try:
        check_length(file, max_minutes)
        (result,) = s2t.transcribe(file, lang)
    except AudioError as error:
        raise gradio.Error(f"This file cannot be read as audio: {error}") from error
    if not result.segments:
        return "", {}, f"No speech in {result.duration:.1f} s of audio.", []
    segments = [[f"{s.start:.1f}-{s.end:.1f} s", s.language, s.text] for s in result.segments]
    return result.text, result.posteriors or {result.language: 1.0}, describe(result), segments


def check_length(file: str, max_minutes: float) -> None:
    """Refuse audio that is too long, whatever its header says, or has a very high rate.

    Raises:
        AudioError: the file cannot be read.
        gradio.Error: it is; shown on the page.
    """
    seconds = 0.0
    for samples, rate in read_blocks(file):
        seconds += len(samples) / rate
        if rate > MAX_RATE:
            raise gradio.Error(f"The recording has a rate of {rate} Hz: lower it to {MAX_RATE} Hz at most.")
        if seconds > 60 * max_minutes:
            raise gradio.Error(
                f"The recording is longer than {max_minutes:g} minutes: cut it, or use `lole transcribe`."
            )


def describe(result: Result) -> str:
    """Describe a result in one line: language, confidence and speed."""
    language = "given" if result.confidence is None else f"posterior {result.confidence:.2f}"
    seconds = result.decode_seconds
    speed = result.duration / max(seconds, 1e-9)
    times = f"{result.duration:.1f} s of audio in {seconds:.2f} s, {speed:.0f} times real time"
    return f"{result.language}, {language}; {times}"


if __name__ == "__main__":
    main()

"""Transcribe audio of any length and rate.

Examples:
  lole transcribe talk.wav --model exp/lole_train_mole_raw_lole_mini_seed0
  lole transcribe a.wav b.flac --model DIR --lang de --output json > results.jsonl
  lole transcribe talk.mp3 --model DIR --output srt > talk.srt
  lole transcribe recordings/ talk.mp4 --model DIR --output vtt --output_dir subtitles
  lole transcribe talk.wav --model DIR --output srt --timestamps > talk.srt
  lole transcribe talk.wav --model DIR --langs de fr
  cat talk.wav | lole transcribe - --model DIR
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_lole.atomic_io import write_text_atomic
from espnet_lole.ownership import check_output_file

if TYPE_CHECKING:
    from espnet_lole.inference.results import Result

AUDIO = (
    ".3gp .aac .ac3 .aif .aifc .aiff .amr .ape .asf .au .avi .caf .flac .flv .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp3 "
    ".mp4 .mpg .mts .oga .ogg .ogv .opus .snd .sph .spx .tta .voc .w64 .wav .webm .wma .wmv .wv"
).split()
"""Suffixes of the files that are transcribed in a folder."""
MAX_SECONDS = 30.0
SEGMENT_SECONDS = {"text": MAX_SECONDS, "json": MAX_SECONDS, "srt": 8.0, "vtt": 8.0}
"""Maximum length of a segment in each form of output, without timestamps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("files", nargs="+", help="audio files, videos, or folders of them; -: standard input")
    add_model_arguments(parser)
    parser.add_argument("--lang", help="language of all files; default: the system finds it")
    parser.add_argument("--langs", nargs="+", help="languages that it chooses from; default: those of the training")
    parser.add_argument(
        "--output",
        default="text",
        choices=SEGMENT_SECONDS,
        help="text (file, tab, text for several files), JSON lines, or subtitles",
    )
    parser.add_argument("--output_dir", type=Path, help="write <name>.<output> for each file there instead of printing")
    parser.add_argument("--overwrite", action="store_true", help="replace files in --output_dir that exist")
    parser.add_argument(
        "--timestamps",
        action="store_true",
        help="cut segments at Whisper's timestamp tokens, which the backbone must know",
    )
    parser.add_argument(
        "--max_segment",
        type=float,
        help="maximum seconds of a segment, 1 to 30, cut at silences; default: 30, 8 for subtitles without timestamps",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a system."""
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of a trained system, of adapters, or of a Whisper"
    )
    parser.add_argument("--backbone", help="folder or hub name of the Whisper; default: that of the training")
    parser.add_argument(
        "--config",
        type=Path,
        help="YAML of the decoding: beam_size, batch_seconds ...; default: the options that the system was scored with",
    )
    parser.add_argument(
        "--vad_threshold",
        type=float,
        help="probability from which audio is speech; 0 transcribes everything; default: 0.4",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one")


def run(args: argparse.Namespace) -> None:
    """Transcribe the files; one that cannot be read does not stop the others.

    Raises:
        ValueError: a file could not be read, or options contradict each other.
        FileNotFoundError: the system is not there.
    """
    files = [file for given in args.files for file in _expand(given)]
    if args.output in ("srt", "vtt") and len(files) > 1 and args.output_dir is None:
        raise ValueError(f"--output {args.output} needs --output_dir for several files: each gets a file of its own")
    if args.output_dir is not None and len({name for _, name in files}) < len(files):
        raise ValueError(
            "two files have the same name, so that --output_dir would get one of them only: transcribe them apart"
        )
    if args.output_dir is not None:
        for _, name in files:
            check_output_file(_output_file(name, args), args.overwrite)
    from tqdm import tqdm

    from espnet_lole import Speech2Text
    from espnet_lole.data.reading import duration
    from espnet_lole.data.samples import AudioError
    from espnet_lole.languages import find_language

    lang = find_language(args.lang, "--lang") if args.lang else None
    s2t = Speech2Text.from_pretrained(
        args.model,
        args.backbone,
        [find_language(name, "--langs") for name in args.langs or ()] or None,
        device=args.device,
        config=args.config,
        timestamps=args.timestamps,
        vad_threshold=args.vad_threshold,
    )
    inputs = [_standard_input() if file == "-" else file for file, _ in files]
    longest = args.max_segment or (MAX_SECONDS if s2t.search.timestamps else SEGMENT_SECONDS[args.output])
    total, errors = sum(duration(file) or 0.0 for file in inputs) or None, []
    with tqdm(total=total, unit="s", unit_scale=True, disable=None, desc="audio") as progress:
        results = s2t.transcribe(inputs, lang, longest, progress.update, return_exceptions=True)
        for (_, name), result in zip(files, results, strict=True):
            if isinstance(result, AudioError):
                errors.append(result)
            else:
                _write(_format(result, args.output, len(files) > 1 and args.output_dir is None), name, args)
    for error in errors if len(files) > 1 else ():
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise errors[0] if len(files) == 1 else ValueError(f"{len(errors)} of {len(files)} files were not transcribed")


def _expand(given: str) -> list[tuple[str, str]]:
    """List a file, or the audio files and videos in a folder, with the names of their outputs.

    Raises:
        ValueError: the folder has none.
    """
    folder = Path(given)
    if not folder.is_dir():
        return [(given, folder.stem)]
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in AUDIO and path.is_file()]
    if not found:
        raise ValueError(f"the folder {given} has no audio file: looked for {' '.join(AUDIO)}")
    return [(str(path), str(path.relative_to(folder).with_suffix(""))) for path in found]


def _standard_input() -> io.BytesIO:
    """Read standard input into memory, because decoders seek in a file."""
    stream = io.BytesIO(sys.stdin.buffer.read())
    stream.name = "-"
    return stream


def _format(result: Result, output: str, named: bool) -> str:
    """Format a result as text, with the file's name if ``named``, as JSON or as subtitles."""
    from espnet_lole.inference.results import srt, vtt

    if output == "text":
        return f"{result.name}\t{result.text}\n" if named else f"{result.text}\n"
    if output == "json":
        return json.dumps(asdict(result), ensure_ascii=False) + "\n"
    return {"srt": srt, "vtt": vtt}[output](result.segments)


def _write(text: str, name: str, args: argparse.Namespace) -> None:
    """Print a file's text, or write it to ``--output_dir``."""
    if args.output_dir is None:
        print(text, end="", flush=True)
        return
    write_text_atomic(_output_file(name, args), text)


def _output_file(name: str, args: argparse.Namespace) -> Path:
    """Return the file of ``--output_dir`` for an input."""
    return args.output_dir / f"{name}.{'txt' if args.output == 'text' else args.output}"

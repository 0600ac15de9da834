"""What audio files say of their own length: it shows whether a decoder read all of them."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

from espnet_lole.data.samples import AudioError

TRUNCATED_SECONDS = 0.1
"""Audio that may be missing, such as a last frame that is not whole."""
BEGINNINGS = {
    "flac": (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22"),
    "matroska": (b"\x42\x82\x84webm", b"\x42\x82\x88matroska"),
    "mov": (b"ftypM4", b"ftypiso", b"ftypmp4", b"ftypqt  ", b"ftyp3g", b"ftypdash", b"ftypMSNV"),
    "amr": (b"#!AMR",),
    "flv": (b"FLV\x01",),
    "asf": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",),
}
"""Container -> what stands once in a file, at its beginning."""
UNCOMPRESSED_TAGS = (1, 3, 6, 7, 0xFFFE)
"""Format tags of WAV files: PCM, floating point, A-law, mu-law, and the extensible form."""
ASF_PROPERTIES = b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65"
PRINTABLE = re.compile(rb"[ -~]{4}")
XING = re.compile(rb"\xff[\xe2-\xff].{4,40}?(?:Xing|Info)\x00{3}[\x01\x03\x05\x07\x09\x0b\x0d\x0f](.{4})", re.DOTALL)


def num_bytes(file: BinaryIO) -> int:
    """Return the size of an open file."""
    return file.seek(0, 2)


def check_length(promised: float, seconds: float, name: str) -> None:
    """Check that a file has the audio that it promises, give or take TRUNCATED_SECONDS.

    Raises:
        AudioError: it has less.
    """
    if promised - seconds > TRUNCATED_SECONDS:
        raise AudioError(f"truncated: {name}: the header promises {promised:.2f} s, {seconds:.2f} s are there")


def riff_end(file: BinaryIO, name: str) -> int | None:
    """Find the byte at which the chunks of a WAV or AIFF file end or make no sense; None: they fill the file.

    A chunk of unknown size, as programs that write to a pipe leave it, fills the file.

    Raises:
        AudioError: the format that the file states contradicts itself.
    """
    file.seek(0)
    form = file.read(12)
    order, frames = "<" if form.startswith(b"RIFF") else ">", 0
    position, end = 12, num_bytes(file)
    while position + 8 <= end:
        file.seek(position)
        marker, length = struct.unpack(f"{order}4sI", file.read(8))
        if not PRINTABLE.fullmatch(marker) or marker in (b"RIFF", b"RIFX", b"FORM"):
            return position
        if marker == b"fmt ":
            _check_wav(struct.unpack(f"{order}HHIIHH", file.read(16).ljust(16, b"\0")), name)
        elif marker == b"COMM" and form.endswith(b"AIFF"):
            channels, frames, bits = struct.unpack(">HIH", file.read(8).ljust(8, b"\0"))
        elif marker == b"SSND" and frames and length - 8 != frames * channels * ((bits + 7) // 8):
            raise AudioError(
                f"damaged: {name}: the header contradicts itself: {length - 8} bytes for {frames} samples of "
                f"{channels} channels and {bits} bits"
            )
        position += 8 + length + length % 2
    return None


def _check_wav(chunk: tuple[int, ...], name: str) -> None:
    """Check that the fields of a WAV file's format chunk agree, if it is uncompressed.

    Raises:
        AudioError: they do not.
    """
    tag, channels, rate, byte_rate, frame, bits = chunk
    width = frame / max(channels, 1)
    agree = width == (bits + 7) // 8 or (width == 4 and bits in (20, 24))
    if tag in UNCOMPRESSED_TAGS and not (agree and byte_rate in (0, rate * frame)):
        raise AudioError(
            f"damaged: {name}: the header contradicts itself: {channels} channels of {bits} bits at {rate} Hz, in "
            f"frames of {frame} bytes, {byte_rate} a second"
        )


def promised_bytes(file: BinaryIO, container: str) -> int:
    """Read the size that the header of an ASF (WMA, WMV) or AVI file states; 0: none."""
    file.seek(0)
    head = file.read(1 << 16)
    if container == "avi":
        return struct.unpack("<I", head[4:8])[0]
    rest = head.partition(ASF_PROPERTIES)[2] if container == "asf" else b""
    return struct.unpack("<Q", rest[24:32])[0] if len(rest) >= 32 else 0


def second_file(file: BinaryIO, container: str) -> int | None:
    """Find the byte at which another file of the same container begins; None: there is none."""
    marks, tail, position, starts = BEGINNINGS.get(container, ()), b"", 0, set()
    file.seek(0)
    while marks and (block := file.read(1 << 22)):
        text = tail + block
        for mark in marks:
            start = text.find(mark)
            while start >= 0:
                starts.add(position + start)
                start = text.find(mark, start + 1)
        tail = text[-16:]
        position += len(text) - len(tail)
    return sorted(starts)[1] if len(starts) > 1 else None


def mp3_frames(file: BinaryIO) -> int | None:
    """Read the number of frames in the Xing header of an MP3 file; None: it has none."""
    position = 0
    file.seek(position)
    while (head := file.read(10))[:3] == b"ID3" and len(head) == 10:
        position += 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        file.seek(position)
    found = XING.search(head + file.read(4096))
    return int.from_bytes(found[1], "big") or None if found else None


@dataclass
class _OggStream:
    """A logical stream: its sampling rate (0: it is no audio), samples to skip, pages, last position and its end."""

    rate: int
    skip: int
    pages: int = 0
    last: int = 0
    ended: bool = False


def ogg_streams(file: BinaryIO, name: str) -> list[float]:
    """Read the seconds of each audio stream of an Ogg file; a chained file has several, one after the other.

    Raises:
        AudioError: pages are missing or damaged, or a stream has no end.
    """
    streams: list[_OggStream] = []
    open_streams: dict[int, _OggStream] = {}
    position, end = 0, num_bytes(file)
    while position < end:
        file.seek(position)
        head = file.read(27)
        if len(head) < 27 or not head.startswith(b"OggS"):
            if streams and not open_streams:  # tags after the last page
                break
            kind = "truncated" if b"OggS".startswith(head[:4]) else "damaged"
            raise AudioError(f"{kind}: {name}: no whole Ogg page at byte {position} of {end}")
        kind, granule, serial, number = struct.unpack("<BqII", head[5:22])
        sizes = file.read(head[26])
        body = file.read(min(sum(sizes), 64))
        position += 27 + len(sizes) + sum(sizes)
        if position > end or len(sizes) < head[26]:
            raise AudioError(f"truncated: {name}: the last Ogg page is not whole")
        if kind & 2:
            open_streams[serial] = _OggStream(*_ogg_rate(body))
            streams.append(open_streams[serial])
        stream = open_streams.get(serial)
        if stream is None or number != stream.pages:
            raise AudioError(f"damaged: {name}: an Ogg page is missing before byte {position}")
        stream.pages += 1
        stream.last = max(stream.last, granule)
        if kind & 4:
            del open_streams[serial]
    if any(stream.rate for stream in open_streams.values()):
        raise AudioError(f"truncated: {name}: the Ogg stream has no end")
    return [(stream.last - stream.skip) / stream.rate for stream in streams if stream.rate]


def _ogg_rate(head: bytes) -> tuple[int, int]:
    """Return rate and samples to skip of the codec with this first packet; zeros if it is no audio."""
    if head.startswith(b"OpusHead"):
        return 48000, struct.unpack("<H", head[10:12])[0]
    if head.startswith(b"\x01vorbis"):
        return struct.unpack("<I", head[12:16])[0], 0
    if head.startswith(b"\x7fFLAC"):
        return int.from_bytes(head[27:30], "big") >> 4, 0
    return (struct.unpack("<I", head[36:40])[0], 0) if head.startswith(b"Speex   ") else (0, 0)

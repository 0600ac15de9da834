"""Decode compressed audio, and the sound of videos, with FFmpeg's libraries (PyAV)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np

from espnet_lole.data.containers import (
    TRUNCATED_SECONDS,
    check_length,
    mp3_frames,
    num_bytes,
    ogg_streams,
    promised_bytes,
    second_file,
)
from espnet_lole.data.samples import AudioError, full_scale

FORMATS = (
    "aac,ac3,eac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,flac,flv,mov,matroska,mp3,mpc,mpc8,mpeg,mpegts,nistsphere,"
    "ogg,oma,rm,tak,tta,voc,w64,wav,wv"
)
"""Containers that may be opened; playlists are left out, because they name other files."""
ANY_METADATA = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
"""Makes PyAV accept titles that are not UTF-8, as it does by itself from version 19 on."""
KNOW_THEIR_LENGTH = ("mov", "matroska", "flac", "asf", "ape", "caf", "tta", "wv", "tak", "flv", "avi")
"""Containers whose header or index has the duration; FFmpeg estimates that of others."""
DECODER_DELAY = 6
"""Frames that a codec may add at the beginning and the end, or take away."""


def decode(file: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """Decode the main audio stream of a file.

    Args:
        file: the opened file, seekable and without a name, from which FFmpeg would guess the format.
        name: its name, for messages.

    Yields:
        Samples, averaged over the channels, float32 (T,), and their rate, a frame of the codec at a time.

    Raises:
        AudioError: there is no audio, it cannot be decoded, or a part of it is missing.
    """
    try:
        with _open(file) as container:
            stream = container.streams.best("audio")
            if stream is None:
                raise AudioError(f"no audio: {name}: the file has no audio stream")
            yield from _decode(container, stream, _Account(container, stream, file, name))
    except (av.FFmpegError, OSError, EOFError) as error:
        raise AudioError(f"cannot be decoded: {name}: {getattr(error, 'strerror', None) or error}") from error


def duration(file: BinaryIO) -> float | None:
    """Return the seconds that a file says or is estimated to have; None if there is no telling."""
    try:
        with _open(file) as container:
            return None if container.duration is None else container.duration / av.time_base
    except (av.FFmpegError, OSError, EOFError):
        return None


def _open(file: BinaryIO) -> av.container.InputContainer:
    """Open a file at its beginning."""
    file.seek(0)
    return av.open(file, options={"format_whitelist": FORMATS}, **ANY_METADATA)


def _decode(
    container: av.container.InputContainer, stream: av.AudioStream, account: _Account
) -> Iterator[tuple[np.ndarray, int]]:
    """Decode a stream; the account sees every packet and frame."""
    for packet in container.demux():
        ours = packet.stream.index == stream.index
        account.add_packet(packet, ours)
        if not ours:
            continue
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            account.lost += account.packet_seconds
            continue
        for frame in frames:
            account.add_frame(frame)
            yield _mono(frame), frame.sample_rate
    account.check()


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """Average the channels of a frame: float32 (T,)."""
    samples = frame.to_ndarray()
    samples = samples if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).T  # (channels, T)
    scale, zero = full_scale(samples.dtype)
    return ((samples.mean(axis=0, dtype=np.float64) - zero) / scale).astype(np.float32)


class _Account:
    """Compares what was decoded with the packets, their times and the container's duration.

    Args:
        container: the opened container.
        stream: its stream that is decoded.
        file: its file.
        name: its name, for messages.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.AudioStream, file: BinaryIO, name: str
    ) -> None:
        self.name, self.kind = name, container.format.name.partition(",")[0]
        self.promised, self.frames = None, stream.frames if self.kind == "mov" else None
        position = file.tell()
        if (second := second_file(file, self.kind)) is not None:
            raise AudioError(f"chained: {name}: another file begins at byte {second}; split them")
        if self.kind == "ogg":
            self.promised = sum(ogg_streams(file, name))
        elif self.kind == "mp3":
            self.frames = mp3_frames(file)
        elif self.kind in KNOW_THEIR_LENGTH and container.duration is not None:
            self.promised = container.duration / av.time_base
        if (size := promised_bytes(file, self.kind)) > num_bytes(file):
            raise AudioError(f"truncated: {name}: the header promises {size} bytes, {num_bytes(file)} are there")
        file.seek(position)
        self.packets, self.packet_seconds, self.reached = 0, 0.0, 0.0
        self.audio, self.decoded, self.lost, self.drift = 0.0, 0.0, 0.0, 0.0

    def add_packet(self, packet: av.Packet, ours: bool) -> None:
        """Count a packet, of the decoded stream or of another."""
        base = packet.time_base or 0
        seconds = float((packet.duration or 0) * base) if packet.size else 0.0
        if packet.pts is not None:
            self.reached = max(self.reached, float(packet.pts * base) + seconds)
        if ours and packet.size:
            self.packets, self.packet_seconds = self.packets + 1, seconds
            self.audio += seconds

    def add_frame(self, frame: av.AudioFrame) -> None:
        """Count a frame.

        Raises:
            AudioError: it begins later than the frame before it ends.
        """
        if frame.time is not None:
            drift = frame.time - self.decoded
            if self.decoded and drift - self.drift > TRUNCATED_SECONDS:
                gap = drift - self.drift
                raise AudioError(f"damaged: {self.name}: {gap:.2f} s are missing at {self.decoded:.2f} s")
            self.drift = drift
        self.decoded += frame.samples / frame.sample_rate

    def check(self) -> None:
        """Check that all was decoded.

        Raises:
            AudioError: a part is missing.
        """
        if self.frames:  # those of MP4 include what an edit list hides, of MP3 what encoders add
            packets = self.packets + (DECODER_DELAY if self.kind == "mov" else 0)
            check_length(self.frames * self.packet_seconds, packets * self.packet_seconds, self.name)
        if self.promised is not None:
            exact = self.kind in ("ogg", "flac")
            check_length(self.promised, self.decoded if exact else self.reached, self.name)
            if exact and self.decoded - self.promised > TRUNCATED_SECONDS:
                raise AudioError(f"damaged: {self.name}: {self.decoded:.2f} s instead of {self.promised:.2f} s")
        lost = max(self.lost, self.audio - self.decoded - DECODER_DELAY * self.packet_seconds)
        if lost > TRUNCATED_SECONDS:
            raise AudioError(f"damaged: {self.name}: {lost:.2f} s of {self.audio:.2f} s cannot be decoded")

"""What the structure of a file says of its length, so that a file that breaks off is noticed.

libsndfile silently reads what is left of a WAV, AIFF or OGG whose end is missing. Here headers
are compared with the size of the file. Nothing is allocated by what a header says; reading is
by `os.pread`, so the position of the descriptor does not move.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from waveflow_ray.audio.media import SNIFF_BYTES, container_type
from waveflow_ray.audio.mpeg import skip_id3, survey_mpeg

MAX_CHUNKS = 4096
"""Of a RIFF or IFF file. A file of nothing but empty chunks shall not keep us busy."""

_STREAMED = (range(0x7FFF0000, 0x80000000), range(0xFFFF0000, 0x100000000))
"""Sizes written by programs that could not come back to fill in the true one: 2^31 or 2^32,
less some header (sox, GStreamer, ffmpeg). They mean 'to the end'; so does 0."""


@dataclass(frozen=True)
class Survey:
    """What is known of a file before decoding it.

    Attributes:
        kind: its canonical MIME type, or None if it is none that is decoded here.
        frames: how many there are, by count; None leaves it to the decoder.
        least_frames: fewer decoded frames than this mean that the file is damaged.
        cut: the file ends before its structure does.
        prefix, start: instead of the file itself the decoder is shown `prefix` and then the
            file from byte `start` on, where it would stumble otherwise.
        always_show: do so in any case, not only if the decoder counts too few frames.
    """

    kind: str | None
    frames: int | None = None
    least_frames: int = 0
    cut: bool = False
    prefix: bytes = b""
    start: int = 0
    always_show: bool = False


def survey(fd: int) -> Survey:
    """Look through the structure of an open file.

    Args:
        fd: of a seekable file; its position is neither used nor changed.
    """
    size = os.fstat(fd).st_size
    start = 0
    # Tags can be longer than any buffer: step over each.
    while (head := os.pread(fd, SNIFF_BYTES, start)).startswith(b"ID3") and len(head) >= 10:
        start += skip_id3(head)
    match container_type(head):
        case "audio/wav":
            return _survey_wav(fd, start, size, head)
        case "audio/aiff":
            return _survey_aiff(fd, start, size)
        case "audio/flac":
            return _survey_flac(head)
        case "audio/ogg":
            return _survey_ogg(fd, start, size)
        case None | "audio/mpeg":
            return _survey_mpeg(fd, start, size)
        case _:
            return Survey(None)


def _survey_wav(fd: int, start: int, size: int, head: bytes) -> Survey:
    order = ">" if head.startswith(b"RIFX") else "<"
    at, long_size = start + 12, 0
    for _ in range(MAX_CHUNKS):
        chunk = os.pread(fd, 24, at)
        if len(chunk) < 8:
            break
        name, length = struct.unpack_from(f"{order}4sI", chunk)
        if name == b"ds64" and len(chunk) == 24:
            long_size = struct.unpack_from("<Q", chunk, 16)[0]
        if name == b"data":
            there = size - at - 8
            if length == 0xFFFFFFFF and long_size:
                return Survey("audio/wav", cut=long_size > there)
            if length == 0 and there > 0 and at + 8 - start <= len(head):
                # Nobody came back to fill in the size, not even the placeholder of a stream.
                size_field = struct.pack(f"{order}I", min(there, 0xFFFFFFFE))
                prefix = head[: at + 4 - start] + size_field
                return Survey("audio/wav", prefix=prefix, start=at + 8, always_show=True)
            return Survey("audio/wav", cut=length > there and not is_streamed(length))
        at += 8 + length + length % 2
    return Survey("audio/wav", cut=True)


def _survey_aiff(fd: int, start: int, size: int) -> Survey:
    at = start + 12
    for _ in range(MAX_CHUNKS):
        chunk = os.pread(fd, 8, at)
        if len(chunk) < 8:
            break
        name, length = struct.unpack(">4sI", chunk)
        if name == b"SSND":
            cut = length > size - at - 8 and not is_streamed(length)
            return Survey("audio/aiff", cut=cut)
        at += 8 + length + length % 2
    return Survey("audio/aiff", cut=True)


def is_streamed(length: int) -> bool:
    """Whether a chunk of this size, more than 0, reaches to the end of the file."""
    return any(length in sizes for sizes in _STREAMED)


def _survey_flac(head: bytes) -> Survey:
    # STREAMINFO comes first; the low 36 bits of its bytes 10 to 17 count the frames (RFC 9639).
    total = int.from_bytes(head[18:26], "big") & 0xFFFFFFFFF if len(head) >= 26 else 0
    return Survey("audio/flac", frames=total or None, least_frames=total)


def _survey_ogg(fd: int, start: int, size: int) -> Survey:
    """Step from page to page (RFC 3533) to the end."""
    at = start
    positions: list[int] = []
    first_serial, serial, ended = None, None, False
    while at < size:
        page = os.pread(fd, 27 + 255, at)
        if len(page) < 27 or page[:4] != b"OggS":
            break
        flags, position, serial = struct.unpack_from("<BqI", page, 5)
        first_serial = serial if first_serial is None else first_serial
        table = page[27 : 27 + page[26]]
        at += 27 + page[26] + sum(table)
        # A page that runs past the end of the file is not there for the decoder.
        ended = bool(flags & 4) and at <= size
        if position > 0 and at <= size:
            positions = [*positions[:1], position]
    # A recording of a broadcast need not begin at 0: only the distance counts. Of several
    # streams in a row each has a clock of its own.
    comparable = len(positions) == 2 and serial == first_serial
    least = positions[-1] - positions[0] if comparable else 0
    return Survey("audio/ogg", least_frames=max(least, 0), cut=not ended)


def _survey_mpeg(fd: int, start: int, size: int) -> Survey:
    found = survey_mpeg(fd, start, size)
    if found is None:
        return Survey(None)
    # Two MPEG frames of leeway: encoders disagree on whether the Xing frame counts, and the
    # decoder drops the encoder's delay and padding.
    leeway = 2 * found.samples + 2 * 1152
    least = max(0, max(found.frames, found.promised_frames) - leeway)
    # libsndfile knows an MP3 by its first bytes, unless it is told a name that ends so.
    is_hidden = found.xing_start != start
    if found.promised_frames and found.frames <= found.promised_frames + leeway:
        return Survey(
            "audio/mpeg", None, least, found.cut, start=found.xing_start, always_show=is_hidden
        )
    # Without a Xing frame libsndfile estimates the length by the first frame and stops there;
    # in files joined end to end, at the length of the first.
    return Survey(
        "audio/mpeg",
        found.frames,
        least,
        found.cut,
        prefix=found.counter,
        start=found.start,
        always_show=is_hidden or found.promised_frames > 0,
    )

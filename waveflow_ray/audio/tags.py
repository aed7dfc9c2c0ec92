"""Tags that libsndfile does not write, or not by the name that players look for."""

from __future__ import annotations

import os
import struct

HEAD_BYTES = 64 * 1024
"""The comments of a FLAC or OGG are in the first few hundred."""


def id3_tag(title: str | None, encoder: str) -> bytes:
    """An ID3v2.4 tag in UTF-8, for the beginning of an MP3: LAME names itself as the encoder, and
    has titles in Latin-1 only."""
    frames = _text_frame(b"TSSE", encoder)
    if title is not None:
        frames += _text_frame(b"TIT2", title)
    return b"ID3\x04\x00\x00" + _syncsafe(len(frames)) + frames


def _text_frame(name: bytes, text: str) -> bytes:
    body = b"\x03" + text.encode()
    return name + _syncsafe(len(body)) + bytes(2) + body


def _syncsafe(number: int) -> bytes:
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def license_to_encoder(fd: int, encoder: str) -> None:
    """Rename the comment ``license={encoder}`` of a finished FLAC or OGG in place.

    libsndfile has no way to write ``encoder={encoder}``, and in OGG gives that name to itself,
    which becomes ``library``. All three names are of one length.
    """
    head = bytearray(os.pread(fd, HEAD_BYTES, 0))
    ours = f"license={encoder}".encode()
    if head.startswith(b"OggS"):
        start, stop = _ogg_page(head, _ogg_page(head, 0)[1])
        page = head[start:stop]
        _overwrite(page, page.find(b"ENCODER=libsndfile"), b"LIBRARY")
        _overwrite(page, page.lower().rfind(ours), b"ENCODER")
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", _ogg_checksum(page))
        os.pwrite(fd, page, start)
    else:
        _overwrite(head, head.rfind(ours), b"encoder")
        os.pwrite(fd, head, 0)


def _overwrite(data: bytearray, at: int, name: bytes) -> None:
    if at >= 0:
        data[at : at + len(name)] = name


def _ogg_page(head: bytearray, start: int) -> tuple[int, int]:
    """Start and stop of the page that begins at `start` (RFC 3533, section 6)."""
    table = head[start + 27 : start + 27 + head[start + 26]]
    return start, start + 27 + len(table) + sum(table)


def _ogg_checksum(page: bytearray) -> int:
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1) ^ (0x104C11DB7 if checksum & 0x80000000 else 0)
    return checksum

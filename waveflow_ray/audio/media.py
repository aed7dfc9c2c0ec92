"""What kind of file it is: by content, never by name.

The types that the service decodes are recognised by their own signatures here, because libmagic
misses valid ones (MP3 behind a picture in an ID3 tag, MP3 without a tag and with unusual frame
headers); all other names come from libmagic, for the error message.

libmagic itself is `pylibmagic`'s, with that package's database: nothing is installed on the host.
"""

from __future__ import annotations

import os
from functools import cache
from threading import Lock
from typing import Protocol

from waveflow_ray.audio.mpeg import find_frames, skip_id3

SNIFF_BYTES = 64 * 1024
JUNK_BYTES = 8 * 1024
"""MP3s cut from a stream may start within a frame: the next one is looked for this far."""

_ALIASES = {
    alias: name
    for name, aliases in {
        "audio/wav": "audio/x-wav audio/vnd.wave audio/wave audio/x-pn-wav",
        "audio/flac": "audio/x-flac",
        "audio/mpeg": "audio/mp3 audio/x-mp3 audio/mpeg3 audio/x-mpeg3 audio/x-mpeg",
        "audio/ogg": "application/ogg audio/vorbis audio/x-vorbis audio/x-vorbis+ogg audio/x-ogg",
        "audio/aiff": "audio/x-aiff audio/aif audio/x-aif audio/aifc audio/x-aifc",
    }.items()
    for alias in aliases.split()
}
_OGG_CODECS = {
    b"\x01vorbis": "audio/ogg",
    b"OpusHead": "audio/x-opus+ogg",
    b"Speex   ": "audio/x-speex+ogg",
    b"\x7fFLAC": "audio/x-flac+ogg",
    b"\x80theora": "video/ogg",
}
_OGG_OTHER = "application/x-ogg"
"""Ogg with none of these in it. Deliberately no alias of audio/ogg: it cannot be decoded."""


class _Sniffer(Protocol):
    def from_buffer(self, buf: bytes) -> str: ...


_lock = Lock()


def canonical_type(mime: str) -> str:
    """One name per type: ``audio/x-wav`` is ``audio/wav``; unknown ones come back as they are.

    Upper case, blanks around it and parameters (``; codecs=1``) do not matter.
    """
    name = mime.partition(";")[0].strip().lower()
    return _ALIASES.get(name, name)


def sniff(head: bytes) -> str:
    """The canonical MIME type of a file.

    Args:
        head: its first bytes, up to `SNIFF_BYTES`; more is ignored.

    Returns:
        ``audio/wav``, ``audio/flac``, ``audio/ogg`` (Vorbis only), ``audio/mpeg`` or
        ``audio/aiff`` for what can be decoded, else another name, such as ``text/plain``,
        ``audio/x-m4a`` or ``application/octet-stream``; ``application/x-empty`` for no bytes.
    """
    head = bytes(head[:SNIFF_BYTES])
    behind_tag = skip_id3(head)
    if behind_tag >= len(head) > 0 and head.startswith(b"ID3"):
        # A picture fills the whole head. Opening the file tells what is behind it.
        return "audio/mpeg"
    known = container_type(head[behind_tag:])
    if known is not None:
        return known
    with _lock:
        found = canonical_type(_libmagic().from_buffer(head[behind_tag:]))
    if found == "audio/mpeg" and head[:1] == b"\xff" and head[1] & 0xF6 == 0xF0:
        return "audio/aac"  # layer bits 00: ADTS
    if found == "application/octet-stream" and find_frames(head, JUNK_BYTES) >= 0:
        return "audio/mpeg"
    return found


def container_type(head: bytes) -> str | None:
    """The type by its signature at the very start, or None for anything unknown."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "audio/wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "audio/aiff"
    if head[:4] == b"fLaC":
        return "audio/flac"
    if head[:4] == b"OggS":
        return _ogg_type(head)
    if head[:1] == b"\xff" and find_frames(head, limit=1, in_a_row=2) == 0:
        return "audio/mpeg"
    return None


def _ogg_type(head: bytes) -> str:
    """By the codecs of all streams: each begins with a page of its own (RFC 3533, section 6)."""
    found: list[str] = []
    at = 0
    while head[at : at + 4] == b"OggS" and len(head) >= at + 27 and head[at + 5] & 2:
        body = at + 27 + head[at + 26]
        first = head[body : body + 8]
        found += [name for magic, name in _OGG_CODECS.items() if first.startswith(magic)]
        at = body + sum(head[at + 27 : body])
    video = [name for name in found if name.startswith("video/")]
    return (video or found or [_OGG_OTHER])[0]


@cache
def _libmagic() -> _Sniffer:
    """The one Magic object of this process; not thread-safe, so used under `_lock`."""
    before = {name: os.environ.get(name) for name in ("MAGIC", "LIBRARY_PATH", "LD_LIBRARY_PATH")}
    # Importing pylibmagic makes ctypes find its library, so it has to come before magic.
    # Its changes to the environment are undone: child processes have no use for them.
    import pylibmagic  # isort: skip
    import magic  # isort: skip

    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    sniffer: _Sniffer = magic.Magic(mime=True, magic_file=str(pylibmagic.data / "magic.mgc"))
    return sniffer

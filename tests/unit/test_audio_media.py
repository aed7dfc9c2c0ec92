"""Content types by content: every kind that is decoded, and what only looks like one."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from waveflow_ray.audio.media import SNIFF_BYTES, canonical_type, sniff
from waveflow_ray.audio.mpeg import frame_header, skip_id3

RATE_HZ = 44100


def encoded(container: str, encoding: str, rate: int = RATE_HZ, frames: int = 6000) -> bytes:
    tone = 0.3 * np.sin(np.arange(frames) * 0.05)
    file = io.BytesIO()
    soundfile.write(file, tone, rate, encoding, format=container)
    return file.getvalue()


def id3(size: int) -> bytes:
    return b"ID3\x04\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)


def adts_frames(count: int) -> bytes:
    """AAC as ADTS: 44.1 kHz stereo frames of 100 bytes."""
    return (b"\xff\xf1\x50\x80\x0c\x9f\xfc" + bytes(93)) * count


@pytest.mark.parametrize(
    ("container", "encoding", "expected"),
    [
        ("WAV", "PCM_16", "audio/wav"),
        ("WAVEX", "PCM_24", "audio/wav"),
        ("RF64", "FLOAT", "audio/wav"),
        ("AIFF", "PCM_16", "audio/aiff"),
        ("AIFF", "FLOAT", "audio/aiff"),  # AIFC
        ("FLAC", "PCM_16", "audio/flac"),
        ("OGG", "VORBIS", "audio/ogg"),
        ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    ],
)
def test_every_decodable_container_is_recognised(
    container: str, encoding: str, expected: str
) -> None:
    """Each container that is decoded has its one canonical name, even if cut after 64 KiB."""
    assert sniff(encoded(container, encoding)[:SNIFF_BYTES]) == expected


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000])
def test_mp3_without_tag_is_recognised_at_every_rate(rate: int) -> None:
    """MPEG-1, 2 and 2.5 frames are recognised by their headers alone."""
    data = encoded("MP3", "MPEG_LAYER_III", rate)
    assert data[:1] == b"\xff"
    assert sniff(data) == "audio/mpeg"


@pytest.mark.parametrize("before", [b"\0", b"\0" * 513, b"\r\nhello" * 20])
def test_mp3_that_starts_within_a_frame_is_recognised(before: bytes) -> None:
    """Garbage in front of the first frame does not hide an MP3."""
    assert sniff(before + encoded("MP3", "MPEG_LAYER_III")) == "audio/mpeg"


@pytest.mark.parametrize("size", [10, 1000, 300_000])
def test_mp3_behind_id3_is_recognised(size: int) -> None:
    """A tag of any size, larger than what is looked at too, means MP3."""
    assert sniff((id3(size) + encoded("MP3", "MPEG_LAYER_III"))[:SNIFF_BYTES]) == "audio/mpeg"


def test_what_follows_an_id3_tag_counts() -> None:
    """FLAC with an ID3 tag in front is FLAC, and AAC with one is not MP3."""
    assert sniff(id3(500) + encoded("FLAC", "PCM_16")) == "audio/flac"
    assert sniff(id3(500) + adts_frames(20)) not in {"audio/mpeg", "application/octet-stream"}


def test_aac_is_not_mpeg_audio() -> None:
    """AAC in ADTS shares MP3's sync word; its layer bits tell it apart."""
    found = sniff(adts_frames(50))
    assert "aac" in found
    assert frame_header(adts_frames(1)) is None


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        (b"OpusHead", "audio/x-opus+ogg"),
        (b"\x7fFLAC", "audio/x-flac+ogg"),
        (b"Speex   ", "audio/x-speex+ogg"),
        (b"\x80theora", "video/ogg"),
        (b"fishead\0", "application/x-ogg"),
    ],
)
def test_ogg_of_other_codecs_is_not_ogg_vorbis(codec: bytes, expected: str) -> None:
    """Only Vorbis is audio/ogg here, because nothing else in Ogg is decoded."""
    page = b"OggS\0\x02" + bytes(20) + b"\x01\x20" + codec.ljust(32, b"\0")
    assert sniff(page) == expected
    assert canonical_type(sniff(page)) != "audio/ogg"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", "application/x-empty"),
        (b"This is a text whatever its name says.\n" * 9, "text/plain"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0", "audio/x-m4a"),
        (b"%PDF-1.4\n", "application/pdf"),
        (b"RIFF\x24\0\0\0AVI LIST", "video/x-msvideo"),
        (bytes(4096), "application/octet-stream"),
    ],
)
def test_other_content_has_libmagics_name(head: bytes, expected: str) -> None:
    """What cannot be decoded is named as libmagic does, for the error message."""
    assert sniff(head) == expected


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ("audio/x-wav", "audio/wav"),
        ("audio/vnd.wave", "audio/wav"),
        ("audio/wave", "audio/wav"),
        ("audio/x-pn-wav", "audio/wav"),
        ("audio/x-flac", "audio/flac"),
        ("audio/mp3", "audio/mpeg"),
        ("audio/x-mp3", "audio/mpeg"),
        ("audio/mpeg3", "audio/mpeg"),
        ("audio/x-mpeg", "audio/mpeg"),
        ("application/ogg", "audio/ogg"),
        ("audio/vorbis", "audio/ogg"),
        ("audio/x-vorbis+ogg", "audio/ogg"),
        ("audio/x-aiff", "audio/aiff"),
        ("audio/aif", "audio/aiff"),
        (" Audio/X-WAV; codecs=1", "audio/wav"),
        ("video/mp4", "video/mp4"),
    ],
)
def test_aliases_mean_one_type(alias: str, expected: str) -> None:
    """Settings may use any of the names in circulation."""
    assert canonical_type(alias) == expected


def test_libmagic_comes_from_the_python_package() -> None:
    """Neither the library nor the database of the host is used, nor the environment changed."""
    program = (
        "import os\n"
        "before = dict(os.environ)\n"
        "from waveflow_ray.audio.media import sniff\n"
        "assert sniff(b'text ' * 9) == 'text/plain'\n"
        "assert dict(os.environ) == before\n"
        "maps = {line.split()[-1] for line in open('/proc/self/maps') if 'magic' in line}\n"
        "files = [path for path in maps if 'libmagic' in path or path.endswith('.mgc')]\n"
        "assert files and all('/pylibmagic/' in path for path in files), files\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_id3_tags_are_stepped_over() -> None:
    """Several tags, and a footer, belong to the length; no tag has length 0."""
    footer = bytearray(id3(20))
    footer[5] = 0x10
    assert skip_id3(b"RIFF") == 0
    assert skip_id3(id3(300)) == 310
    assert skip_id3(id3(5) + id3(7) + b"x") == 32
    assert skip_id3(bytes(footer)) == 40

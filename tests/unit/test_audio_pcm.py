"""Samples by byte range are those that the whole file has, or there are none by range."""

from __future__ import annotations

import io
import os
import struct
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from waveflow_ray.audio.decode import open_audio
from waveflow_ray.audio.pcm import PcmLayout, decode, pcm_layout
from waveflow_ray.audio.pcmfile import PcmFile
from waveflow_ray.errors import JobError

FRAMES = 501
HEAD = 4096
BY_RANGE = {
    "wav8": ("WAV", "PCM_U8", "FILE"),
    "wav16": ("WAV", "PCM_16", "FILE"),
    "wav24": ("WAV", "PCM_24", "FILE"),
    "wav32": ("WAV", "PCM_32", "FILE"),
    "wav-float": ("WAV", "FLOAT", "FILE"),
    "wav-double": ("WAV", "DOUBLE", "FILE"),
    "wavex24": ("WAVEX", "PCM_24", "FILE"),
    "wavex-float": ("WAVEX", "FLOAT", "FILE"),
    "rifx16": ("WAV", "PCM_16", "BIG"),
    "rf64": ("RF64", "PCM_16", "FILE"),
    "aiff8": ("AIFF", "PCM_S8", "FILE"),
    "aiff16": ("AIFF", "PCM_16", "FILE"),
    "aiff24": ("AIFF", "PCM_24", "FILE"),
    "aiff32": ("AIFF", "PCM_32", "FILE"),
    "aifc-float": ("AIFF", "FLOAT", "FILE"),
    "aifc-double": ("AIFF", "DOUBLE", "FILE"),
    "aifc-sowt": ("AIFF", "PCM_16", "LITTLE"),
}


def encoded(name: str, channels: int = 2, frames: int = FRAMES) -> bytes:
    container, encoding, endian = BY_RANGE[name]
    samples = np.random.default_rng(channels).uniform(-1, 1, (frames, channels))
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 44100, channels, encoding, endian, container) as out:
        out.title = "a title that makes a chunk"
        out.write(samples)
    return file.getvalue()


def with_chunk(wav: bytes, name: bytes, content: bytes) -> bytes:
    """A chunk before all others, padded to an even length."""
    chunk = name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    size = struct.unpack_from("<I", wav, 4)[0] + len(chunk)
    return wav[:4] + struct.pack("<I", size) + wav[8:12] + chunk + wav[12:]


def whole(data: bytes, *, plain: bool = False) -> tuple[NDArray[np.generic], bool]:
    """What is found in the whole file, and whether something is missing.

    Args:
        plain: as the reader does it, which takes plain PCM without libsndfile; else by libsndfile.
    """
    if not plain:
        with patch.object(PcmFile, "open", lambda _fd: None):
            return whole(data, plain=True)
    fd = os.memfd_create("sound")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        with open_audio(fd) as reader:
            return np.concatenate([block.copy() for block in reader.blocks()]), reader.truncated
    finally:
        os.close(fd)


def by_range(data: bytes, layout: PcmLayout, first: int, frames: int) -> NDArray[np.generic]:
    start, stop = layout.byte_range(first, frames)
    return decode(data[start:stop], layout)


def check(data: bytes, first: int, frames: int) -> bool:
    """Whether there is a layout; if so, it is right."""
    layout = pcm_layout(data[:HEAD], len(data))
    if layout is None:
        return False
    samples, truncated = whole(data)
    assert not truncated
    assert np.array_equal(whole(data, plain=True)[0], samples)
    assert layout.frames == len(samples)
    first = min(first, layout.frames)
    frames = min(frames, layout.frames - first)
    found = by_range(data, layout, first, frames)
    assert found.dtype == samples.dtype
    assert np.array_equal(found, samples[first : first + frames])
    start, stop = layout.byte_range(first, frames)
    assert np.array_equal(found, decode(data[start:stop], layout, numba=False))
    return True


@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("name", BY_RANGE)
def test_any_stretch_by_range_is_that_of_the_file(name: str, channels: int) -> None:
    data = encoded(name, channels)
    for first, frames in ((0, FRAMES), (0, 1), (FRAMES - 1, 1), (123, 77), (7, 0)):
        assert check(data, first, frames)


@pytest.mark.parametrize(
    ("name", "content"),
    [(b"JUNK", b"\0" * 28), (b"bext", b"x" * 602), (b"LIST", b"INFOIART\x02\0\0\0me")],
)
def test_chunks_before_the_samples_are_skipped(name: bytes, content: bytes) -> None:
    assert check(with_chunk(encoded("wav24", 1), name, content), 100, 200)


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_the_shortest_files(frames: int) -> None:
    """One with no frame has no layout: the reader of files says what is wrong with it."""
    for name in BY_RANGE:
        assert check(encoded(name, 1, frames), 0, frames) == (frames > 0)


def test_compressed_and_unknown_files_have_no_layout(tmp_path: Path) -> None:
    samples = np.zeros((2000, 2))
    kinds = [("WAV", "ULAW"), ("WAV", "MS_ADPCM"), ("AIFF", "ULAW"), ("FLAC", "PCM_16"),
             ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("W64", "PCM_16"), ("CAF", "PCM_16"),
             ("AU", "PCM_16")]  # fmt: skip
    for container, encoding in kinds:
        soundfile.write(tmp_path / "a", samples, 44100, encoding, format=container)
        data = (tmp_path / "a").read_bytes()
        assert pcm_layout(data[:HEAD], len(data)) is None, (container, encoding)


def test_files_that_break_off_have_no_layout() -> None:
    for name in BY_RANGE:
        data = encoded(name)
        layout = pcm_layout(data[:HEAD], len(data))
        assert layout is not None
        end = layout.byte_range(0, layout.frames)[1]
        for size in (end - 1, end - layout.frame_bytes, layout.data_start, 40, 12, 0):
            assert pcm_layout(data[: min(size, HEAD)], size) is None, (name, size)


@pytest.mark.parametrize("claim", [0, 1, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF])
def test_sizes_that_writers_leave_open_have_no_layout(claim: int) -> None:
    data = bytearray(encoded("wav16"))
    at = data.index(b"data")
    struct.pack_into("<I", data, at + 4, claim)
    assert pcm_layout(bytes(data[:HEAD]), len(data)) is None


@pytest.mark.parametrize("size", [0x7FFEFFFC, 0x90000000, 0xFFFE0000])
def test_files_of_more_than_2_gb(size: int) -> None:
    """WAV has room for 4; only what stands for 'to the end' is not believed."""
    data = bytearray(encoded("wav16"))
    at = data.index(b"data")
    struct.pack_into("<I", data, at + 4, size)
    layout = pcm_layout(bytes(data[:HEAD]), at + 8 + size)
    assert layout is not None
    assert layout.byte_range(layout.frames - 1, 1)[1] == at + 8 + size
    struct.pack_into("<I", data, at + 4, 0x7FFFFFF0)
    assert pcm_layout(bytes(data[:HEAD]), at + 8 + size) is None
    rf64 = bytearray(encoded("rf64"))
    struct.pack_into("<QQQ", rf64, 20, 9_000_000_000, 8_000_000_000, 2_000_000_000)
    layout = pcm_layout(bytes(rf64[:HEAD]), 9_000_000_000)
    assert layout is not None
    assert layout.byte_range(layout.frames - 1, 1)[1] == layout.data_start + 8_000_000_000


def test_a_header_further_in_than_the_head_has_no_layout() -> None:
    data = with_chunk(encoded("wav16"), b"JUNK", b"\0" * HEAD)
    assert pcm_layout(data[:HEAD], len(data)) is None
    assert pcm_layout(data[: 2 * HEAD], len(data)) is not None


@settings(max_examples=600)
@given(
    name=st.sampled_from(sorted(BY_RANGE)),
    changes=st.lists(
        st.tuples(st.integers(0, 119), st.sampled_from([0, 1, 2, 16, 64, 127, 128, 254, 255])),
        min_size=1,
        max_size=3,
    ),
    cut=st.integers(0, 40),
    first=st.integers(0, FRAMES),
    frames=st.integers(0, FRAMES),
)
def test_a_damaged_header_never_gives_other_samples(
    name: str, changes: list[tuple[int, int]], cut: int, first: int, frames: int
) -> None:
    """Either both readers agree, or there is no layout."""
    data = bytearray(encoded(name, 2, 40))
    for at, value in changes:
        data[at] = value
    check(bytes(data[: len(data) - cut]), first, frames)


def test_a_form_that_contradicts_itself_has_no_layout() -> None:
    """In each of these one or two bytes are others than in a file that has one."""
    wav, extensible, aiff = encoded("wav16"), encoded("wavex24"), encoded("aiff16")
    assert check(wav, 0, 9)
    assert check(extensible, 0, 9)
    assert check(aiff, 0, 9)
    fmt, ext = wav.index(b"fmt ") + 8, extensible.index(b"fmt ") + 8
    comm, ssnd = aiff.index(b"COMM") + 8, aiff.index(b"SSND") + 8
    for data, at, value in (
        (wav, fmt + 2, b"\0\0"),  # channels
        (wav, fmt + 12, b"\2"),  # bytes of a frame
        (wav, fmt + 14, b"\x0c"),  # bits
        (wav, fmt + 4, b"\1\0"),  # rate
        (wav, wav.index(b"data"), b"slnt"),
        (extensible, ext + 18, b"\x14"),  # 20 valid bits in 24
        (extensible, ext + 30, b"\1"),  # of the GUID
        (aiff, comm + 1, b"\0"),  # channels
        (aiff, comm + 5, b"\xf6"),  # frames
        (aiff, comm + 7, b"\x0c"),  # bits
        (aiff, comm + 17, b"\1"),  # a rate that is no whole number
        (aiff, ssnd + 3, b"\4"),  # offset of the first sample
    ):
        changed = data[:at] + value + data[at + len(value) :]
        assert changed != data
        assert pcm_layout(changed[:HEAD], len(data)) is None, (data[:4], at)
    no_channel = wav[: fmt + 2] + b"\0\0" + wav[fmt + 4 : fmt + 12] + b"\0\0" + wav[fmt + 14 :]
    assert pcm_layout(no_channel[:HEAD], len(wav)) is None


def test_chunks_after_which_libsndfile_may_be_lost_have_no_layout() -> None:
    """It reads so many bytes of them, whatever their length is."""
    for name in (b"acid", b"basc", b"cue ", b"MARK"):
        assert not check(with_chunk(encoded("wav16"), name, b""), 0, 9)


CHUNKS = [b"LIST", b"JUNK", b"bext", b"iXML", b"id3 ", b"fact", b"PEAK", b"cue ", b"smpl",
          b"acid", b"inst", b"cart", b"FLLR", b"NAME", b"COMT", b"MARK", b"basc", b"CHAN", b"fmt ",
          b"\0\0\0\0"]  # fmt: skip


@settings(max_examples=600)
@given(
    name=st.sampled_from([name for name in sorted(BY_RANGE) if name != "rf64"]),
    more=st.lists(st.tuples(st.sampled_from(CHUNKS), st.binary(max_size=40), st.integers(0, 9))),
    first=st.integers(0, 40),
    frames=st.integers(0, 40),
)
def test_other_chunks_never_give_other_samples(
    name: str, more: list[tuple[bytes, bytes, int]], first: int, frames: int
) -> None:
    """Of any content, before and behind the samples: both readers agree, or there is no layout, or
    libsndfile refuses the file."""
    data = encoded(name, 2, 40)
    order = ">" if data[:4] in (b"FORM", b"RIFX") else "<"
    chunks, at = [], 12
    while at < len(data):
        length = struct.unpack_from(f"{order}I", data, at + 4)[0]
        chunks.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    for kind, content, where in more:
        chunks.insert(where, (kind, content))
    body = b"".join(
        kind + struct.pack(f"{order}I", len(content)) + content + b"\0" * (len(content) % 2)
        for kind, content in chunks
    )
    whole_file = data[:4] + struct.pack(f"{order}I", 4 + len(body)) + data[8:12] + body
    with suppress(JobError):
        check(whole_file, first, frames)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_no_number_is_silence(value: float) -> None:
    """As when reading the whole file; too large for float32 is infinite."""
    samples = np.array([[0.5], [value], [-0.5]])
    file = io.BytesIO()
    soundfile.write(file, samples, 44100, "DOUBLE", format="WAV")
    data = file.getvalue()
    assert check(data, 0, 3)
    with pytest.raises(JobError):
        whole(data[:20])

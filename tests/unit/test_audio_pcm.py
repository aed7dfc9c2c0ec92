"""Samples by byte range are those that the whole file has, or there are none by range."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from waveflow_ray.audio.decode import open_audio
from waveflow_ray.audio.pcm import PcmLayout, decode, pcm_layout
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


def whole(data: bytes) -> tuple[NDArray[np.generic], bool]:
    """What the reader of whole files finds, and whether it misses something."""
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
    assert layout.frames == len(samples)
    first = min(first, layout.frames)
    frames = min(frames, layout.frames - first)
    found = by_range(data, layout, first, frames)
    assert found.dtype == samples.dtype
    assert np.array_equal(found, samples[first : first + frames])
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

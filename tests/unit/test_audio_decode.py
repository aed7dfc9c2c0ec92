"""Decoding: every format, exactly, in blocks of any size; limits; hostile numbers."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from waveflow_ray.audio.decode import AudioReader, Limits, open_audio
from waveflow_ray.errors import ErrorCode, JobError

RATE_HZ = 44100


def tones(frames: int, channels: int, rate: int = RATE_HZ) -> NDArray[np.float64]:
    time = np.arange(frames)[:, None] / rate
    return 0.5 * np.sin(2 * np.pi * 110 * (1 + np.arange(channels)) * time)


def write(
    path: Path, samples: NDArray[np.float64], encoding: str, container: str, rate: int = RATE_HZ
) -> Path:
    soundfile.write(path, samples, rate, encoding, format=container)
    return path


def read_all(reader: AudioReader, block_frames: int = 1000) -> NDArray[np.float64]:
    """All samples at full scale 1.0."""
    parts = [
        block / 32768 if block.dtype == np.int16 else block.astype(np.float64)
        for block in reader.blocks(block_frames)
    ]
    return np.concatenate(parts)


LOSSLESS = [
    (container, encoding)
    for container, encodings in {
        "WAV": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE",
        "WAVEX": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE",
        "RF64": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE",
        "AIFF": "PCM_S8 PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE",
        "FLAC": "PCM_S8 PCM_16 PCM_24",
    }.items()
    for encoding in encodings.split()
]


@pytest.mark.parametrize(("container", "encoding"), LOSSLESS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_lossless_formats_are_read_exactly(
    tmp_path: Path, container: str, encoding: str, channels: int
) -> None:
    """Samples are those that soundfile reads as float64, to the precision of float32."""
    path = write(tmp_path / "a", tones(3002, channels), encoding, container)
    expected = soundfile.read(path, always_2d=True)[0]
    with open_audio(path) as reader:
        blocks: list[NDArray[Any]] = [block.copy() for block in reader.blocks(257)]
        samples = np.concatenate(blocks)
        assert (reader.container, reader.encoding) == (container, encoding)
        assert (reader.channels, reader.sample_rate) == (channels, RATE_HZ)
        assert (reader.claimed_frames, reader.frames_read) == (3002, 3002)
        assert not reader.truncated
    is_short = encoding in {"PCM_S8", "PCM_U8", "PCM_16"}
    assert samples.dtype == (np.int16 if is_short else np.float32)
    assert all(block.flags.c_contiguous for block in blocks)
    scale = 32768 if is_short else 1
    tolerance = 0 if encoding != "PCM_32" else 2.0**-24
    np.testing.assert_allclose(
        np.divide(samples, scale), expected.astype(np.float32), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize(("container", "encoding"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats_have_their_length_and_level(
    tmp_path: Path, container: str, encoding: str
) -> None:
    """Length is exact, neither truncated nor padded, and the signal is the one encoded."""
    source = tones(20000, 2)
    path = write(tmp_path / "a", source, encoding, container)
    with open_audio(path) as reader:
        samples = read_all(reader)
        assert reader.claimed_frames == len(samples) == 20000
        assert not reader.truncated
    assert np.sqrt(np.mean((samples - source) ** 2)) < 0.01


@pytest.mark.parametrize("encoding", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", range(1, 9))
def test_one_to_eight_channels(tmp_path: Path, encoding: str, channels: int) -> None:
    """Every permitted number of channels keeps its columns in order."""
    source = np.tile(np.arange(channels) / 16, (500, 1))
    with open_audio(write(tmp_path / "a", source, encoding, "WAV")) as reader:
        np.testing.assert_array_equal(read_all(reader), source)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 48000, 96000, 192000])
def test_permitted_sample_rates(tmp_path: Path, rate: int) -> None:
    """8 to 192 kHz are read as they are."""
    with open_audio(write(tmp_path / "a", tones(100, 1), "PCM_16", "WAV", rate)) as reader:
        assert reader.sample_rate == rate


@pytest.mark.parametrize(
    ("channels", "rate", "allowed"),
    [(9, 44100, "1 to 8"), (64, 44100, "1 to 8"), (1, 7999, "8000 to"), (1, 192001, "to 192000")],
)
def test_limits_say_what_is_allowed(tmp_path: Path, channels: int, rate: int, allowed: str) -> None:
    """Too many channels or an extreme rate is undecodable, and the message has the limit."""
    path = write(tmp_path / "a", tones(10, channels), "PCM_16", "WAV", rate)
    with pytest.raises(JobError, match=allowed) as caught:
        open_audio(path)
    assert caught.value.code is ErrorCode.UNDECODABLE_AUDIO


@pytest.mark.parametrize("block_frames", [1, 7, 1000, 100_000])
@pytest.mark.parametrize(
    ("container", "encoding"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_blocks_of_any_size_give_the_same_samples(
    tmp_path: Path, container: str, encoding: str, block_frames: int
) -> None:
    """The size of blocks is of no consequence, and none is larger than asked for."""
    path = write(tmp_path / "a", tones(2003, 2), encoding, container)
    with open_audio(path) as reader:
        expected = read_all(reader, 2003)
        reader.rewind()
        assert max(len(block) for block in reader.blocks(block_frames)) <= block_frames
        reader.rewind()
        np.testing.assert_array_equal(read_all(reader, block_frames), expected)


def test_nan_and_infinity_are_silence(tmp_path: Path) -> None:
    """Float samples that are no numbers, or so large that sums would be none, become 0."""
    source = np.array([0.5, np.nan, np.inf, -np.inf, 1e300, -3e38, 1e31, -0.25, 1e20])
    with open_audio(write(tmp_path / "a", source, "DOUBLE", "WAV")) as reader:
        found = read_all(reader)[:, 0]
    np.testing.assert_array_equal(found, [0.5, 0, 0, 0, 0, 0, 0, -0.25, np.float32(1e20)])


def test_the_name_of_a_file_means_nothing(tmp_path: Path) -> None:
    """FLAC named .wav is read; text named .wav is not audio."""
    with open_audio(write(tmp_path / "flac.wav", tones(99, 1), "PCM_16", "FLAC")) as reader:
        assert len(read_all(reader)) == 99
    (tmp_path / "text.wav").write_text("no audio here\n" * 50)
    with pytest.raises(JobError) as caught:
        open_audio(tmp_path / "text.wav")
    assert caught.value.code is ErrorCode.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize(
    ("container", "encoding"),
    [
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("W64", "PCM_16"),
        ("VOC", "PCM_16"),
        ("OGG", "OPUS"),
        ("WAV", "ULAW"),
        ("WAV", "IMA_ADPCM"),
        ("AIFF", "ULAW"),
    ],
)
def test_other_formats_are_not_supported(tmp_path: Path, container: str, encoding: str) -> None:
    """What libsndfile could read but is not on the list is refused."""
    path = write(tmp_path / "a", tones(4800, 1), encoding, container, 48000)
    with pytest.raises(JobError) as caught:
        open_audio(path)
    assert caught.value.code is ErrorCode.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize(
    ("container", "encoding"), [("WAV", "PCM_16"), ("AIFF", "PCM_16"), ("OGG", "VORBIS")]
)
def test_no_frames_is_undecodable(tmp_path: Path, container: str, encoding: str) -> None:
    """A proper header with no audio behind it is an error once read."""
    path = write(tmp_path / "a", np.zeros((0, 2)), encoding, container)
    with open_audio(path) as reader, pytest.raises(JobError, match="no audio") as caught:
        read_all(reader)
    assert caught.value.code is ErrorCode.UNDECODABLE_AUDIO


@pytest.mark.parametrize("content", [b"", b"RIFF\0\0\0\0WAVE", b"fLaC" + bytes(100)])
def test_empty_and_broken_files_are_undecodable(tmp_path: Path, content: bytes) -> None:
    """Neither an empty file nor a mere signature can be opened."""
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(JobError) as caught:
        open_audio(tmp_path / "a")
    assert caught.value.code is ErrorCode.UNDECODABLE_AUDIO


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    """Absence is not a property of audio."""
    with pytest.raises(FileNotFoundError):
        open_audio(tmp_path / "absent")


def test_duration_is_limited_by_counting(tmp_path: Path) -> None:
    """Audio as long as the limit is read; one frame more is not."""
    path = write(tmp_path / "a", tones(8001, 1), "PCM_16", "WAV", 8000)
    with open_audio(path, Limits(max_duration_s=8001 / 8000)) as reader:
        assert len(read_all(reader)) == 8001
    with (
        open_audio(path, Limits(max_duration_s=1.0)) as reader,
        pytest.raises(JobError, match="longer") as caught,
    ):
        read_all(reader)
    assert caught.value.code is ErrorCode.UNDECODABLE_AUDIO


def test_a_descriptor_stays_open_and_is_read_from_its_start(tmp_path: Path) -> None:
    """The reader neither cares for the position of a descriptor nor closes it."""
    path = write(tmp_path / "a", tones(100, 1), "PCM_16", "WAV")
    fd = os.open(path, os.O_RDONLY)
    try:
        os.lseek(fd, 77, os.SEEK_SET)
        with open_audio(fd) as reader:
            assert len(read_all(reader)) == 100
        assert os.fstat(fd).st_size > 0
    finally:
        os.close(fd)


def test_rewind_starts_over(tmp_path: Path) -> None:
    """After rewinding in mid-file everything comes again and is counted anew."""
    with open_audio(write(tmp_path / "a", tones(5000, 2), "VORBIS", "OGG")) as reader:
        next(reader.blocks(100))
        reader.rewind()
        first = read_all(reader)
        reader.rewind()
        np.testing.assert_array_equal(read_all(reader), first)
        assert reader.frames_read == 5000


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """Thirty times the audio takes no more memory."""

    def peak_bytes(seconds: int) -> int:
        path = write(tmp_path / f"{seconds}", np.zeros((seconds * 8000, 1)), "PCM_16", "FLAC", 8000)
        tracemalloc.start()
        with open_audio(path) as reader:
            assert sum(len(block) for block in reader.blocks(4096)) == seconds * 8000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1)
    assert peak_bytes(60) < peak_bytes(2) + 50_000

"""The waveform of PCM that comes in pieces is that of the whole file."""

from __future__ import annotations

import os
import random

import pytest

from tests.unit.test_audio_pcm import BY_RANGE, FRAMES, encoded
from waveflow_ray.audio.decode import NO_OTHERS, Limits, open_audio
from waveflow_ray.audio.pcmstream import PcmStream
from waveflow_ray.audio.peaks import Waveform, waveform_of

HEAD = 4096


def in_pieces(data: bytes, cuts: list[int], num_peaks: int) -> Waveform:
    stream = PcmStream.of(data[:HEAD], len(data), NO_OTHERS, num_peaks)
    assert stream is not None
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        stream.add(data[start:stop])
    return stream.waveform()


def of_file(data: bytes, num_peaks: int) -> Waveform:
    fd = os.memfd_create("sound")
    try:
        os.write(fd, data)
        with open_audio(fd) as reader:
            return waveform_of(reader, num_peaks)
    finally:
        os.close(fd)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("name", BY_RANGE)
def test_pieces_of_any_size_make_the_waveform_of_the_file(name: str, channels: int) -> None:
    """Cut in the header, in a frame, byte by byte; chunks behind the samples are ignored."""
    data = encoded(name, channels)
    chance = random.Random(f"{name} {channels}")
    for num_peaks in (1, 7, FRAMES, 2 * FRAMES):
        expected = of_file(data, num_peaks)
        assert in_pieces(data, [], num_peaks) == expected
        for count in (1, 5, 60):
            cuts = sorted(chance.choices(range(len(data) + 1), k=count))
            assert in_pieces(data, cuts, num_peaks) == expected
    assert in_pieces(data, list(range(1, len(data))), 7) == of_file(data, 7)


@pytest.mark.parametrize("name", ["wav24", "aiff24", "wav16"])
def test_a_long_file_in_large_pieces(name: str) -> None:
    """More samples in a piece than are converted at a time."""
    data = encoded(name, channels=2, frames=70_001)
    assert in_pieces(data, [300_001], 100) == of_file(data, 100)


def test_what_is_not_certain_is_left_to_the_reader() -> None:
    """A file that breaks off, one with too much of anything, and what is no PCM."""
    data = encoded("wav16", channels=2)
    head, size = data[:HEAD], len(data)
    assert PcmStream.of(head, size, NO_OTHERS, 7) is not None
    assert PcmStream.of(head, size // 2, NO_OTHERS, 7) is None
    assert PcmStream.of(head[:20], size, NO_OTHERS, 7) is None
    assert PcmStream.of(b"", 0, NO_OTHERS, 7) is None
    assert PcmStream.of(b"fLaC" + head, size, NO_OTHERS, 7) is None
    for less in (
        Limits(max_channels=1),
        Limits(max_rate_hz=44_000),
        Limits(min_rate_hz=44_101),
        Limits(max_duration_s=FRAMES / 44_100 - 0.001),
    ):
        assert PcmStream.of(head, size, less, 7) is None

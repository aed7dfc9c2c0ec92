"""The waveform rule, against the rule written down naively in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from waveflow_ray.audio.decode import open_audio
from waveflow_ray.audio.peaks import PeakMeter, normalise, waveform_of

TOLERANCE = 1e-4


def naive(samples: NDArray[np.float64], num_peaks: int) -> NDArray[np.float64]:
    """The rule of the contract, on a whole file of (frames, channels)."""
    mono = np.abs(samples.mean(axis=1))
    size = len(mono) // num_peaks
    if size == 0:
        peaks = np.concatenate([mono, np.zeros(num_peaks - len(mono))])
    else:
        peaks = np.array([mono[i * size : (i + 1) * size].max() for i in range(num_peaks)])
    return peaks / peaks.max() if peaks.max() > 0 else peaks


def metered(samples: NDArray[np.generic], num_peaks: int, block: int) -> NDArray[np.float64]:
    meter = PeakMeter(len(samples), num_peaks)
    for start in range(0, len(samples), block):
        meter.add(samples[start : start + block])  # type: ignore[arg-type]
    return meter.result()


SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 8))
INT16 = arrays(np.int16, SHAPES)
FLOAT32 = arrays(np.float32, SHAPES, elements=st.floats(-2, 2, width=32))


@given(INT16, st.integers(1, 60), st.integers(1, 400))
def test_int16_follows_the_rule(samples: NDArray[np.int16], num_peaks: int, block: int) -> None:
    """16-bit blocks, extremes included, give the naive result for every block size."""
    peaks = metered(samples, num_peaks, block)
    expected = naive(samples / 32768, num_peaks)
    np.testing.assert_allclose(normalise(peaks), expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(peaks, metered(samples, num_peaks, len(samples)))


@given(FLOAT32, st.integers(1, 60), st.integers(1, 400))
def test_float32_follows_the_rule(samples: NDArray[np.float32], num_peaks: int, block: int) -> None:
    """Float blocks give the same bits for every block size, near the naive result."""
    peaks = metered(samples, num_peaks, block)
    mono = np.abs(samples.astype(np.float64).mean(axis=1)).max()
    assert peaks.max() <= mono + 1e-6
    np.testing.assert_array_equal(peaks, metered(samples, num_peaks, len(samples)))
    if mono > 1e-3:  # below, float32 has cancelled
        expected = naive(samples.astype(np.float64), num_peaks)
        np.testing.assert_allclose(
            normalise(peaks), expected, rtol=0, atol=max(TOLERANCE, 1e-6 / mono)
        )


def test_loud_channels_do_not_overflow() -> None:
    """The sum of two or eight channels at the negative limit is full scale."""
    for channels in range(1, 9):
        block = np.full((10, channels), -32768, np.int16)
        np.testing.assert_array_equal(metered(block, 2, 3), [1.0, 1.0])


def test_blocks_are_not_changed() -> None:
    """A meter only looks."""
    for dtype in (np.int16, np.float32):
        for channels in (1, 2, 3):
            block = (-np.ones((50, channels))).astype(dtype)
            metered(block, 7, 50)
            assert (block == -1).all()


def test_noncontiguous_blocks_are_read_right() -> None:
    """Every second frame of a block is as good as a copy of it."""
    block = np.arange(-100, 100, dtype=np.int16).reshape(100, 2)
    np.testing.assert_array_equal(metered(block[::2], 5, 50), metered(block[::2].copy(), 5, 50))


def test_more_frames_than_promised_are_ignored() -> None:
    """The remainder, and whatever follows it, is dropped."""
    meter = PeakMeter(10, 3)
    meter.add(np.full((9, 1), 100, np.int16))
    meter.add(np.full((5, 1), 30000, np.int16))
    np.testing.assert_array_equal(meter.result() * 32768, [100, 100, 100])


@pytest.mark.parametrize("num_peaks", [0, -1])
def test_at_least_one_peak(num_peaks: int) -> None:
    """There is no waveform without peaks."""
    with pytest.raises(ValueError, match="1 or more"):
        PeakMeter(100, num_peaks)


def test_silence_is_zeros(tmp_path: Path) -> None:
    """Silence has no largest peak to divide by."""
    soundfile.write(tmp_path / "a.wav", np.zeros((1000, 2)), 8000)
    with open_audio(tmp_path / "a.wav") as reader:
        waveform = waveform_of(reader, 40)
    assert waveform.peaks == [0.0] * 40
    assert waveform.peak == 0.0


@pytest.mark.parametrize("frames", [1, 39, 40, 41, 79, 80, 81, 4001])
@pytest.mark.parametrize("encoding", ["PCM_16", "PCM_24"])
def test_short_files(tmp_path: Path, frames: int, encoding: str) -> None:
    """Around one and two frames per peak the rule holds to the letter."""
    samples = np.random.default_rng(frames).uniform(-0.9, 0.9, (frames, 2))
    soundfile.write(tmp_path / "a.wav", samples, 8000, encoding)
    with open_audio(tmp_path / "a.wav") as reader:
        waveform = waveform_of(reader, 40)
    expected = naive(soundfile.read(tmp_path / "a.wav", always_2d=True)[0], 40)
    np.testing.assert_allclose(waveform.peaks, expected, rtol=0, atol=TOLERANCE)
    assert len(waveform.peaks) == waveform.num_peaks == 40
    assert max(waveform.peaks) == 1.0
    assert waveform.frames == frames
    assert waveform.duration == frames / 8000


@pytest.mark.parametrize(
    ("container", "encoding"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_waveform_of_every_format(tmp_path: Path, container: str, encoding: str) -> None:
    """The waveform of a file is the naive one of what soundfile reads at once."""
    samples = 0.4 * np.sin(np.arange(30_000) * 0.02)[:, None] * np.linspace(0, 1, 30_000)[:, None]
    soundfile.write(
        tmp_path / "a", np.hstack([samples, -samples / 3]), 44100, encoding, format=container
    )
    with open_audio(tmp_path / "a") as reader:
        waveform = waveform_of(reader, 300)
    decoded = soundfile.read(tmp_path / "a", always_2d=True)[0]
    np.testing.assert_allclose(waveform.peaks, naive(decoded, 300), rtol=0, atol=TOLERANCE)
    assert (waveform.sample_rate, waveform.channels) == (44100, 2)
    assert all(round(peak, 4) == peak for peak in waveform.peaks)
    assert not waveform.truncated
    assert waveform.peak == pytest.approx(np.abs(decoded.mean(axis=1)).max(), abs=TOLERANCE)


def test_a_false_header_costs_a_second_pass_only(tmp_path: Path) -> None:
    """With an unknown or wrong length the waveform is that of the frames that came."""
    samples = np.random.default_rng(3).uniform(-0.5, 0.5, (60_000, 1))
    soundfile.write(tmp_path / "a.flac", samples, 44100)
    with open_audio(tmp_path / "a.flac") as reader:
        expected = waveform_of(reader, 100)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[22:26] = bytes(4)
    (tmp_path / "unknown.flac").write_bytes(data)
    with open_audio(tmp_path / "unknown.flac") as reader:
        assert reader.claimed_frames == 0
        assert waveform_of(reader, 100) == expected
    (tmp_path / "cut.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:-30_000])
    with open_audio(tmp_path / "cut.flac") as reader:
        cut = waveform_of(reader, 100)
    assert cut.truncated
    assert 0 < cut.frames < 60_000
    part = soundfile.read(tmp_path / "a.flac", always_2d=True)[0][: cut.frames]
    np.testing.assert_allclose(cut.peaks, naive(part, 100), rtol=0, atol=TOLERANCE)

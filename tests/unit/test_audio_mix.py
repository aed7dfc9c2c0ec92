"""The mix: against an independent float64 computation, and the same bits in every order."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from waveflow_ray.audio.decode import open_audio
from waveflow_ray.audio.mix import (
    MixBus,
    Mixdown,
    MixFormat,
    fraction_bits,
    group_windows,
    mix_files,
    mix_format,
    stem_windows,
)
from waveflow_ray.audio.scratch import open_scratch
from waveflow_ray.errors import ErrorCode, JobError

TOLERANCE = 1e-4
LIMIT = 31129


@dataclass(frozen=True)
class Info:
    sample_rate: int
    channels: int


@pytest.fixture
def scratch_fd(tmp_path: Path) -> Iterator[int]:
    fd = open_scratch(tmp_path)
    yield fd
    os.close(fd)


def noise(seed: int, frames: int, channels: int, level: float = 0.5) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-level, level, (frames, channels))


def write(
    path: Path, samples: NDArray[np.float64], rate: int = 44100, encoding: str = "PCM_16"
) -> Path:
    soundfile.write(path, samples, rate, encoding, format="WAV")
    return path


def read(path: Path) -> NDArray[np.float64]:
    samples: NDArray[np.float64] = soundfile.read(path, always_2d=True)[0]
    return samples


def reference(paths: Sequence[Path], rate: int) -> NDArray[np.float64]:
    """Whole files, float64: resampled at once, to stereo, averaged, scaled down to 0.95."""
    stems = []
    for path in paths:
        samples, own_rate = soundfile.read(path, always_2d=True)
        if own_rate != rate:
            samples = soxr.resample(samples, own_rate, rate, quality="HQ")
        stems.append(samples if samples.shape[1] == 2 else np.repeat(samples, 2, axis=1))
    total = np.zeros((max(map(len, stems)), 2))
    for stem in stems:
        total[: len(stem)] += stem
    total /= len(stems)
    gain = min(1.0, 0.95 / float(np.abs(total).max()))
    return total * gain


def mixed(
    groups: Sequence[Sequence[Path]], window_frames: int, out: Path, backwards: bool = False
) -> Mixdown:
    """As a cluster would: groups summed apart, their windows added to one bus as they come."""
    with ExitStack() as stack:
        readers = [[stack.enter_context(open_audio(path)) for path in group] for group in groups]
        fmt = replace(mix_format(itertools.chain(*readers)), window_frames=window_frames)
        windows = [pair for group in readers for pair in enumerate(group_windows(group, fmt))]
        fd = open_scratch(out.parent)
        stack.callback(os.close, fd)
        bus = MixBus(fd, fmt)
        for index, window in reversed(windows) if backwards else windows:
            bus.add(index, window)
        return bus.write_wav(out)


@pytest.fixture(scope="module")
def stems(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Stems of all kinds: mono and stereo, 16, 24 bit and float, three rates, unlike lengths."""
    folder = tmp_path_factory.mktemp("stems")
    return [
        write(folder / "a", noise(1, 30_000, 2)),
        write(folder / "b", noise(2, 20_001, 1), encoding="PCM_24"),
        write(folder / "c", noise(3, 33_333, 2), 48_000, "FLOAT"),
        write(folder / "d", noise(4, 9_999, 1), 48_000),
        write(folder / "e", noise(5, 12_345, 2, 0.9), 22_050),
    ]


def test_mix_is_the_scaled_average(stems: list[Path], tmp_path: Path) -> None:
    """Mono with stereo, 44.1 with 48 kHz and unlike lengths give what float64 gives at once."""
    mixdown = mix_files(stems, tmp_path / "mix.wav")
    expected = reference(stems, 48_000)
    samples = read(tmp_path / "mix.wav")
    assert (mixdown.sample_rate, mixdown.channels) == (48_000, 2)
    assert samples.shape == expected.shape == (mixdown.frames, 2)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=TOLERANCE)
    assert mixdown.duration == mixdown.frames / 48_000


def test_order_groups_and_windows_do_not_change_a_bit(stems: list[Path], tmp_path: Path) -> None:
    """Any order, sharing-out and window size, even backwards, writes the same file."""
    mix_files(stems, tmp_path / "expected.wav")
    expected = (tmp_path / "expected.wav").read_bytes()
    a, b, c, d, e = stems
    sharings = [
        [[e, d, c, b, a]],
        [[a], [b], [c], [d], [e]],
        [[c, a], [e, b, d]],
        [[b], [d, e, a, c]],
    ]
    for groups, window, backwards in itertools.product(
        sharings, [1000, 4097, 240_000], [False, True]
    ):
        mixed(groups, window, tmp_path / "mix.wav", backwards)
        assert (tmp_path / "mix.wav").read_bytes() == expected


def test_one_stem_below_the_limit_is_unchanged(tmp_path: Path) -> None:
    """A 16-bit stem with peaks up to the limit is in the mix bit for bit."""
    source = np.random.default_rng(0).integers(-LIMIT, LIMIT + 1, (5000, 2), np.int16)
    soundfile.write(tmp_path / "a.wav", source, 44100)
    mixdown = mix_files([tmp_path / "a.wav"], tmp_path / "mix.wav")
    np.testing.assert_array_equal(soundfile.read(tmp_path / "mix.wav", dtype="int16")[0], source)
    assert mixdown.gain == 1.0


@pytest.mark.parametrize("n_stems", [1, 2, 3, 5])
def test_peak_is_at_most_095(tmp_path: Path, n_stems: int) -> None:
    """Stems at full scale, both signs, end exactly at the highest sample that is permitted."""
    extremes = np.tile(np.array([[-32768, 32767]], np.int16), (600, 1))
    soundfile.write(tmp_path / "a.wav", extremes, 44100)
    mixdown = mix_files([tmp_path / "a.wav"] * n_stems, tmp_path / "mix.wav")
    samples = soundfile.read(tmp_path / "mix.wav", dtype="int16")[0].astype(int)
    assert np.abs(samples).max() == LIMIT
    assert mixdown.peak == LIMIT / 32768 <= 0.95
    assert mixdown.gain < 1.0


def test_quiet_mixes_are_not_made_louder(tmp_path: Path) -> None:
    """Gain is never above 1."""
    path = write(tmp_path / "a", noise(1, 2000, 1, 0.01))
    assert mix_files([path, path], tmp_path / "mix.wav").gain == 1.0
    np.testing.assert_array_equal(read(tmp_path / "mix.wav"), read(path))


def test_silence_mixes_to_silence(tmp_path: Path) -> None:
    """Nothing is divided by a peak of 0."""
    path = write(tmp_path / "a", np.zeros((500, 2)))
    mixdown = mix_files([path, path, path], tmp_path / "mix.wav")
    assert (mixdown.peak, mixdown.gain, set(mixdown.peaks)) == (0.0, 1.0, {0.0})
    assert not read(tmp_path / "mix.wav").any()


def test_mono_stems_make_a_mono_mix(tmp_path: Path) -> None:
    """Only mono stems: one channel. One stereo stem among them: two, the mono in both."""
    mono = write(tmp_path / "m", noise(1, 1000, 1))
    stereo = write(tmp_path / "s", np.zeros((1000, 2)))
    assert mix_files([mono, mono], tmp_path / "mix.wav").channels == 1
    assert mix_files([mono, stereo], tmp_path / "mix.wav").channels == 2
    samples = read(tmp_path / "mix.wav")
    np.testing.assert_array_equal(samples[:, 0], samples[:, 1])
    np.testing.assert_allclose(samples[:, :1], read(mono) / 2, rtol=0, atol=0.51 / 32768)


def test_waveform_is_that_of_the_file_written(stems: list[Path], tmp_path: Path) -> None:
    """4000 peaks, computed from the very samples of the mix."""
    mixdown = mix_files(stems, tmp_path / "mix.wav")
    mono = np.abs(read(tmp_path / "mix.wav").mean(axis=1))
    size = len(mono) // 4000
    expected = mono[: size * 4000].reshape(4000, size).max(axis=1)
    np.testing.assert_allclose(mixdown.peaks, expected / expected.max(), rtol=0, atol=TOLERANCE)


def test_float_samples_have_headroom(tmp_path: Path) -> None:
    """Float stems up to 8 times full scale are scaled, not clipped; beyond, they are clipped."""
    loud = np.array([0.0, 1.0, -4.0, 7.5, -8.0, 100.0])[:, None]
    path = write(tmp_path / "a", loud, encoding="FLOAT")
    mix_files([path], tmp_path / "mix.wav")
    expected = np.clip(loud, -8, 8) * (0.95 / 8)
    np.testing.assert_allclose(read(tmp_path / "mix.wav"), expected, rtol=0, atol=TOLERANCE)


@given(st.integers(1, 8192))
def test_the_bus_cannot_overflow(n_stems: int) -> None:
    """All stems at the end of their headroom together fit int32, and 16 bits fit the grid."""
    bits = fraction_bits(n_stems)
    assert 15 <= bits <= 28
    assert n_stems * 8 * 2**bits <= 2**31
    assert bits == 28 or n_stems * 8 * 2 ** (bits + 1) > 2**31


@pytest.mark.parametrize("n_stems", [0, 8193])
def test_impossible_numbers_of_stems(n_stems: int) -> None:
    """None, or more than the bus can hold."""
    with pytest.raises(ValueError, match="8192"):
        fraction_bits(n_stems)


def test_clipped_floats_at_every_stem_do_not_wrap(tmp_path: Path, scratch_fd: int) -> None:
    """Four stems at +8 (clipped) sum to just below 2**31, not to a negative number."""
    path = write(tmp_path / "a", np.full((10, 1), 50.0), encoding="FLOAT")
    with ExitStack() as stack:
        readers = [stack.enter_context(open_audio(path)) for _ in range(4)]
        fmt = mix_format(readers)
        bus = MixBus(scratch_fd, fmt)
        for index, window in enumerate(group_windows(readers, fmt)):
            bus.add(index, window)
    assert bus.peak() == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize("own_rate", [8000, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("frames", [1, 10, 5_000, 140_001])
def test_resampling_in_blocks_is_resampling_at_once(
    tmp_path: Path, own_rate: int, channels: int, frames: int
) -> None:
    """A stem on the bus has the length and samples of soxr on the whole file."""
    path = write(tmp_path / "a", noise(9, frames, channels), own_rate)
    fmt = MixFormat(48_000, channels, 1, 7001)
    with open_audio(path) as reader:
        windows = list(stem_windows(reader, fmt))
    assert all(len(window) == 7001 for window in windows[:-1])
    expected = soxr.resample(read(path), own_rate, 48_000, quality="HQ")
    samples = np.concatenate(windows) / 2**fmt.bits if windows else np.zeros((0, channels))
    assert samples.shape == expected.shape
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-5)


def test_surround_becomes_stereo_by_the_standard(tmp_path: Path) -> None:
    """5.1: centre and surrounds at -3 dB, no low frequency effects, no more than full scale."""
    path = write(tmp_path / "a", np.eye(6) * 0.5)
    with open_audio(path) as reader:
        window = next(stem_windows(reader, MixFormat(44100, 2, 1, 100)))
    whole, part = 0.5 / (1 + np.sqrt(2)), 0.5 / (1 + np.sqrt(2)) / np.sqrt(2)
    expected: list[list[float]] = [
        [whole, 0],
        [0, whole],
        [part, part],
        [0, 0],
        [part, 0],
        [0, part],
    ]
    np.testing.assert_allclose(window / 2**28, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 4, 5, 7, 8])
def test_other_layouts_are_averaged_by_side(tmp_path: Path, channels: int) -> None:
    """Odd channels left, even ones right, full scale stays full scale."""
    source = noise(1, 100, channels)
    path = write(tmp_path / "a", source, encoding="FLOAT")
    with open_audio(path) as reader:
        window = next(stem_windows(reader, MixFormat(44100, 2, 1, 100)))
    expected = np.stack([source[:, 0::2].mean(axis=1), source[:, 1::2].mean(axis=1)], axis=1)
    np.testing.assert_allclose(window / 2**28, expected, rtol=0, atol=1e-6)


def test_a_stem_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    """No mix is made of part of a stem, and the error names it."""
    path = write(tmp_path / "drums.wav", noise(1, 5000, 2))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(JobError, match=r"drums\.wav") as caught:
        mix_files([path], tmp_path / "mix.wav")
    assert caught.value.code is ErrorCode.TRUNCATED_AUDIO
    assert not (tmp_path / "mix.wav").exists()


def test_no_stems_is_an_error() -> None:
    """There is no mix of nothing."""
    with pytest.raises(JobError) as caught:
        mix_format([])
    assert caught.value.code is ErrorCode.NO_STEMS


def test_format_is_the_best_of_all_stems() -> None:
    """Highest rate; stereo if any is not mono; windows of five seconds."""
    fmt = mix_format([Info(44_100, 1), Info(96_000, 1), Info(48_000, 1)])
    assert fmt == MixFormat(96_000, 1, 3, 480_000)
    assert mix_format([Info(44_100, 1), Info(44_100, 6)]) == MixFormat(44_100, 2, 2, 220_500)


def test_windows_of_unlike_length_add_up(scratch_fd: int) -> None:
    """A longer window after a shorter one, a shorter after a longer, and one far ahead."""
    bus = MixBus(scratch_fd, MixFormat(44_100, 1, 1, 10))
    bus.add(3, np.full((2, 1), 5 << 20, np.int32))
    bus.add(0, np.full((4, 1), 1 << 20, np.int32))
    bus.add(0, np.full((10, 1), 2 << 20, np.int32))
    assert bus.frames == 32
    assert bus.peak() == (5 << 20) / 2**28
    bus.add(0, np.full((3, 1), 3 << 20, np.int32))
    total = np.frombuffer(os.pread(scratch_fd, 4 * 32, 0), np.int32) >> 20
    np.testing.assert_array_equal(total, [6] * 3 + [3] + [2] * 6 + [0] * 20 + [5] * 2)
    bus.add(3, np.full((1, 1), -5 << 20, np.int32))
    assert bus.peak() == (6 << 20) / 2**28


def test_a_peak_behind_a_shorter_window_is_seen(scratch_fd: int, tmp_path: Path) -> None:
    """The loudest frame keeps counting when only frames before it change."""
    bus = MixBus(scratch_fd, MixFormat(44_100, 1, 2, 10))
    loud = np.zeros((10, 1), np.int32)
    loud[9] = 2**28
    bus.add(0, loud)
    bus.add(0, np.zeros((3, 1), np.int32))
    assert bus.peak() == 1.0
    assert bus.write_wav(tmp_path / "mix.wav").peak == LIMIT / 32768


@pytest.mark.parametrize(
    "window", [np.zeros((11, 2), np.int32), np.zeros((5, 1), np.int32), np.zeros((5, 2))]
)
def test_windows_of_another_format_are_refused(scratch_fd: int, window: NDArray[np.int32]) -> None:
    """Too long, of other channels or no int32: a mistake of the program, not of the audio."""
    with pytest.raises(ValueError, match="does not fit"):
        MixBus(scratch_fd, MixFormat(44_100, 2, 1, 10)).add(0, window)


def test_a_mix_can_be_written_to_a_descriptor(stems: list[Path], tmp_path: Path) -> None:
    """The descriptor stays open, and the file is the one that a path would get."""
    mix_files(stems[:1], tmp_path / "expected.wav")
    with ExitStack() as stack:
        reader = stack.enter_context(open_audio(stems[0]))
        fds = [open_scratch(tmp_path) for _ in range(2)]
        for fd in fds:
            stack.callback(os.close, fd)
        fmt = mix_format([reader])
        bus = MixBus(fds[0], fmt)
        for index, window in enumerate(stem_windows(reader, fmt)):
            bus.add(index, window)
        bus.write_wav(fds[1])
        assert os.pread(fds[1], 1 << 24, 0) == (tmp_path / "expected.wav").read_bytes()


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """A mix of 16 windows takes no more memory than one of 4."""

    def peak_bytes(seconds: int) -> int:
        path = write(tmp_path / f"{seconds}", np.full((seconds * 8000, 2), 0.25), 8000)
        tracemalloc.start()
        mix_files([path, path], tmp_path / "mix.wav")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    # Blocks of the reader are longer than this audio at 8 kHz: from there on it is flat.
    assert peak_bytes(160) < peak_bytes(40) * 1.05

"""The loudness meter: against libebur128, ffmpeg and the signals of EBU Tech 3341."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyebur128
import pytest
import soundfile
from numpy.typing import NDArray

from waveflow_ray.audio.loudness import Loudness, LoudnessMeter
from waveflow_ray.audio.mix import mix_files
from waveflow_ray.audio.spec import MixSpec, StemSpec
from waveflow_ray.local.song import make_song

BITS = 24
FULL_SCALE = 2**BITS


def measured(samples: NDArray[np.float64], rate: int, block: int = 1 << 19) -> Loudness:
    meter = LoudnessMeter(rate, samples.shape[1], FULL_SCALE)
    integers = np.rint(samples * FULL_SCALE).astype(np.int32)
    for start in range(0, len(integers), block):
        meter.add(integers[start : start + block])
    return meter.result()


def by_libebur128(samples: NDArray[np.float64], rate: int) -> tuple[float, float]:
    """Integrated loudness in LUFS, and the true peak of the loudest channel, linear."""
    mode = pyebur128.MeasurementMode
    state = pyebur128.R128State(
        samples.shape[1], rate, mode.MODE_I | mode.MODE_TRUE_PEAK | mode.MODE_SAMPLE_PEAK
    )
    state.add_frames(np.ascontiguousarray(samples).reshape(-1), len(samples))
    peaks = [pyebur128.get_true_peak(state, channel) for channel in range(samples.shape[1])]
    return pyebur128.get_loudness_global(state), max(peaks)


def noise(rate: int, seconds: float, channels: int, seed: int = 5) -> NDArray[np.float64]:
    """Pink-ish noise whose level swings, so that the gates have work."""
    rng = np.random.default_rng(seed)
    frames = int(rate * seconds)
    white = rng.uniform(-0.7, 0.7, (frames, channels))
    swing = 0.5 + 0.5 * np.sin(np.arange(frames) / rate * 0.9)
    return np.asarray((white + np.roll(white, 1, 0)) * 0.5 * swing[:, None] ** 3)


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float64]:
    """The demo's song: drums, bass, chords and voice, mixed to 44.1 kHz stereo."""
    folder = tmp_path_factory.mktemp("song")
    stems = tuple(StemSpec(path=str(stem.path)) for stem in make_song(folder, seconds=8))
    mix_files(MixSpec(stems=stems, bit_depth=32, sample_rate=44100, channels=2), folder / "mix.wav")
    return np.asarray(soundfile.read(folder / "mix.wav")[0])


def sine(
    level: float, seconds: float, frequency: float, rate: int = 48000, phase: float = 0.0
) -> NDArray[np.float64]:
    at = np.arange(round(seconds * rate)) * (frequency / rate) * 2 * np.pi
    return np.repeat(level * np.sin(at + math.radians(phase))[:, None], 2, axis=1)


def decibels(factor: float) -> float:
    return 20 * math.log10(factor)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    "rate", [8000, 11025, 22050, 32000, 44100, 48000, 88200, 96000, 176400, 192000]
)
def test_noise_measures_as_by_libebur128(rate: int, channels: int) -> None:
    """Below 96 kHz there are twice its taps here, so of noise the true peaks differ a little."""
    samples = noise(rate, 4.0, channels)
    ours, (lufs, true_peak) = measured(samples, rate), by_libebur128(samples, rate)
    assert ours.integrated_lufs() == pytest.approx(lufs, abs=0.001)
    close = 0.2 if rate < 96_000 else 0.01
    assert decibels(ours.true_peak) == pytest.approx(decibels(true_peak), abs=close)
    assert ours.sample_peak == pytest.approx(np.abs(samples).max(), abs=2 / FULL_SCALE)


def test_music_measures_as_by_libebur128(music: NDArray[np.float64]) -> None:
    ours, (lufs, true_peak) = measured(music, 44100), by_libebur128(music, 44100)
    assert ours.integrated_lufs() == pytest.approx(lufs, abs=0.001)
    assert decibels(ours.true_peak) == pytest.approx(decibels(true_peak), abs=0.01)


TECH_3341 = {
    "1": ([(-23, 20.0)], -23),
    "2": ([(-33, 20.0)], -33),
    "3": ([(-36, 10.0), (-23, 60.0), (-36, 10.0)], -23),
    "4": ([(-72, 10.0), (-36, 10.0), (-23, 60.0), (-36, 10.0), (-72, 10.0)], -23),
    "5": ([(-26, 20.0), (-20, 20.1), (-26, 20.0)], -23),
}


@pytest.mark.parametrize("case", TECH_3341)
def test_ebu_tech_3341_loudness(case: str) -> None:
    """The synthetic stereo signals of table 1: tones of 1 kHz, levels in dBFS, seconds."""
    tones, expected = TECH_3341[case]
    samples = np.concatenate([sine(10 ** (dbfs / 20), s, 1000) for dbfs, s in tones])
    assert measured(samples, 48000).integrated_lufs() == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("fraction", "phase", "amplitude", "expected"),
    [(4, 0, 0.5, -6), (4, 45, 0.5, -6), (6, 60, 0.5, -6), (8, 67.5, 0.5, -6), (4, 45, 1.41, 3)],
)
def test_ebu_tech_3341_true_peak_of_tones(
    fraction: int, phase: float, amplitude: float, expected: float
) -> None:
    """Signals 15 to 19: tones at a fraction of the sample rate, whose peaks are not samples."""
    tone = sine(amplitude, 1.0, 48000 / fraction, phase=phase)
    fade = np.minimum(1, np.minimum(np.arange(48000), np.arange(48000)[::-1]) / 4800)
    found = decibels(measured(tone * fade[:, None], 48000).true_peak)
    assert expected - 0.4 <= found <= expected + 0.2


@pytest.mark.parametrize("offset", range(4))
def test_ebu_tech_3341_true_peak_between_samples(offset: int) -> None:
    """Signals 20 to 23: a period of fs/4 at full scale within fs/6 at half of it, in phase; made
    at four times the rate, filtered, and every fourth sample taken."""
    quiet = np.tile(0.5 * np.sin(2 * np.pi * np.arange(24) / 24), 2000)
    dense = np.concatenate([quiet, np.sin(2 * np.pi * np.arange(16) / 16), quiet])
    lowpass = np.sinc(np.arange(-256, 257) / 4) / 4 * np.kaiser(513, 10)
    ramp = np.minimum(1, np.arange(len(dense)) / 1920)
    dense = np.convolve(dense, lowpass, "same") * ramp * ramp[::-1]
    burst = np.repeat(dense[offset::4, None], 2, axis=1)
    found = decibels(measured(burst, 48000).true_peak)
    assert -0.4 <= found <= 0.2


def test_ebu_tech_3341_short_term_loudness() -> None:
    """Signal 9: any three seconds of it are of one loudness, though it goes up and down."""
    tones = [sine(10 ** (dbfs / 20), s, 1000) for dbfs, s in [(-20, 1.34), (-30, 1.66)] * 5]
    energies = measured(np.concatenate(tones), 48000).energies
    short_term = np.convolve(energies, np.full(30, 1 / 30), "valid")
    assert len(energies) == 150
    np.testing.assert_allclose(-0.691 + 10 * np.log10(short_term), -23, rtol=0, atol=0.1)


@pytest.mark.parametrize("block", [1, 7, 4799, 4800, 65536])
def test_block_sizes_do_not_change_a_bit(block: int) -> None:
    samples = noise(44100, 0.9 if block < 8 else 3.0, 2)
    whole, cut = measured(samples, 44100), measured(samples, 44100, block)
    assert np.array_equal(cut.energies, whole.energies)
    assert (cut.true_peak, cut.sample_peak) == (whole.true_peak, whole.sample_peak)


def test_a_gain_moves_the_gates_too() -> None:
    """Loudness after a gain is that of the audio times the gain, down to where the gates bite."""
    quiet = np.concatenate([sine(10 ** (dbfs / 20), 4, 1000) for dbfs in (-66, -60, -75)])
    sound = measured(quiet, 48000)
    for gain_db in (0, 20, -6, -12):
        expected, _ = by_libebur128(quiet * 10 ** (gain_db / 20), 48000)
        found = sound.integrated_lufs(10 ** (gain_db / 20))
        if math.isinf(expected):
            assert found is None
        else:
            assert found == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("frames", [0, 1, 19199])
def test_nothing_shorter_than_a_block_has_a_loudness(frames: int) -> None:
    short = measured(sine(0.5, 1, 1000)[:frames], 48000)
    assert short.integrated_lufs() is None
    assert measured(sine(0.5, 1, 1000)[:19200], 48000).integrated_lufs() is not None


def test_silence_has_no_loudness() -> None:
    silence = measured(np.zeros((48000, 2)), 48000)
    assert silence.integrated_lufs() is None
    assert silence.true_peak == silence.sample_peak == 0.0


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not on PATH")
@pytest.mark.parametrize(
    ("sound", "rate"),
    [
        ("noise", 44100),
        ("music", 44100),
        ("gated", 44100),
        *itertools.product(["white", "gaussian"], [44100, 48000, 96000]),
    ],
)
def test_as_ffmpeg_measures(
    sound: str, rate: int, music: NDArray[np.float64], tmp_path: Path
) -> None:
    """Within the meters' tolerances: 0.1 LU, and 0.2 dB of true peak."""
    rng = np.random.default_rng(1)
    samples = {
        "noise": noise(rate, 10, 2),
        "music": music,
        "gated": np.concatenate([sine(10 ** (d / 20), 8, 997, rate) for d in (-40, -20, -30)]),
        "white": rng.uniform(-0.5, 0.5, (3 * rate, 2)),
        "gaussian": rng.standard_normal((3 * rate, 2)) * 0.1,
    }[sound]
    soundfile.write(tmp_path / "sound.wav", samples, rate, "FLOAT")
    meter = "ebur128=peak=true:metadata=1,ametadata=print:file=found"
    command = ["ffmpeg", "-nostats", "-i", "sound.wav", "-af", meter, "-f", "null", "-"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    lines = (tmp_path / "found").read_text().splitlines()
    found = dict(line.split("=") for line in lines if line.startswith("lavfi.r128."))
    peak = max(float(found[f"lavfi.r128.true_peaks_ch{channel}"]) for channel in range(2))
    ours = measured(samples, rate)
    assert ours.integrated_lufs() == pytest.approx(float(found["lavfi.r128.I"]), abs=0.1)
    assert decibels(ours.true_peak) == pytest.approx(decibels(peak), abs=0.2)

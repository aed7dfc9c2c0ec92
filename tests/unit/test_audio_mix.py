"""The mix: against an independent float64 computation, and the same bits by every plan."""

from __future__ import annotations

import itertools
import os
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from waveflow_ray.audio import mix
from waveflow_ray.audio.bus import MixBus, MixFormat, to_stereo
from waveflow_ray.audio.cell import cell_windows
from waveflow_ray.audio.mix import LocalFiles, Mixdown, Mixer, mix_files
from waveflow_ray.audio.plan import plan_mix
from waveflow_ray.audio.scratch import open_scratch
from waveflow_ray.audio.spec import MixSpec
from waveflow_ray.errors import ErrorCode, JobError

TOLERANCE = 1e-4
LIMIT = 31129


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


def spec_of(*paths: Path, **fields: Any) -> MixSpec:
    return MixSpec.model_validate({"stems": [{"path": str(path)} for path in paths], **fields})


def mixed(*paths: Path, **fields: Any) -> tuple[NDArray[np.float64], Mixdown]:
    """The samples of a mix of these files, and what is said of it."""
    out = paths[0].with_name("mix.out")
    mixdown = mix_files(spec_of(*paths, **fields), out)
    return read(out), mixdown


def reference(spec: MixSpec, rate: int) -> NDArray[np.float64]:
    """Whole files, float64: cut, resampled at once, faded, panned, moved, summed in stereo."""
    sounds: list[tuple[int, NDArray[np.float64]]] = []
    for index in spec.audible:
        stem = spec.stems[index]
        samples, own_rate = soundfile.read(stem.path, always_2d=True)
        stop = None if stem.end_s is None else round(stem.end_s * own_rate)
        samples = samples[round(stem.start_s * own_rate) : stop]
        if own_rate != rate:
            samples = soxr.resample(samples, own_rate, rate, quality="HQ")
        stereo = samples if samples.shape[1] == 2 else np.repeat(samples, 2, axis=1)
        at = np.arange(len(stereo))
        if stem.fade_in_s:
            stereo = stereo * np.minimum(1, at / round(stem.fade_in_s * rate))[:, None]
        if stem.fade_out_s:
            left = (len(stereo) - at) / round(stem.fade_out_s * rate)
            stereo = stereo * np.minimum(1, left)[:, None]
        angle = (stem.pan + 1) * np.pi / 4
        stereo = stereo * np.sqrt(2) * np.array([np.cos(angle), np.sin(angle)])
        stereo = stereo * 10 ** (stem.gain_db / 20)
        offset = round(stem.offset_s * rate)
        sounds.append((max(0, offset), stereo[max(0, -offset) :]))
    total = np.zeros((max(start + len(sound) for start, sound in sounds), 2))
    for start, sound in sounds:
        total[start : start + len(sound)] += sound
    return total


def averaged(spec: MixSpec, rate: int) -> NDArray[np.float64]:
    """What the Celery worker's mix is: divided by the number of stems, at most 0.95."""
    total = reference(spec, rate) / len(spec.audible)
    scaled: NDArray[np.float64] = total * min(1.0, 0.95 / float(np.abs(total).max()))
    return scaled


def shared_out(
    spec: MixSpec,
    out: Path,
    parallelism: int,
    window_frames: int,
    by_range: bool = True,
    seed: int = 0,
) -> Mixdown:
    """As a cluster would: cells apart from each other, their windows in any order."""
    stems = mix._probe_files(spec)
    if not by_range:
        stems = [replace(stem, layout=None) for stem in stems]
    plan = plan_mix(spec, stems, parallelism, window_frames)
    outputs = [
        [(i, o) for o in cell_windows(cell, LocalFiles())] for i, cell in enumerate(plan.cells)
    ]
    rng = random.Random(seed)
    bus_fd = open_scratch(out.parent)
    out_fd = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    mixer = Mixer(spec, plan, bus_fd, out_fd)
    while outputs := [cell for cell in outputs if cell]:
        mixer.take(*rng.choice(outputs).pop(0))
    mixdown = mixer.finish()
    mixer.close()
    os.close(bus_fd)
    os.close(out_fd)
    return mixdown


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


@pytest.fixture(scope="module")
def arranged(stems: list[Path]) -> dict[str, Any]:
    """The same stems with everything that can be asked for."""
    a, b, c, d, e = (str(path) for path in stems)
    return {
        "stems": [
            {"path": a, "gain_db": -3.5, "pan": -0.6, "fade_in_s": 0.1, "fade_out_s": 0.2},
            {"path": b, "offset_s": 0.25, "start_s": 0.05, "end_s": 0.3, "pan": 1},
            {"path": c, "offset_s": -0.2, "fade_in_s": 0.4, "gain_db": 4},
            {"path": d, "mute": True},
            {"path": e, "offset_s": 0.5, "fade_out_s": 0.3, "start_s": 0.1},
            {"path": a, "offset_s": 0.9, "end_s": 0.1, "gain_db": -20},
        ]
    }


def test_mix_is_the_scaled_average(stems: list[Path], tmp_path: Path) -> None:
    """Mono with stereo, 44.1 with 48 kHz and unlike lengths give what float64 gives at once."""
    spec = spec_of(*stems)
    mixdown = mix_files(spec, tmp_path / "mix.wav")
    expected = averaged(spec, 48_000)
    samples = read(tmp_path / "mix.wav")
    assert (mixdown.sample_rate, mixdown.channels) == (48_000, 2)
    assert samples.shape == expected.shape == (mixdown.frames, 2)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=TOLERANCE)
    assert mixdown.duration == mixdown.frames / 48_000
    assert [stem["duration"] for stem in mixdown.facts["stems"]] == [
        soundfile.info(path).frames / soundfile.info(path).samplerate for path in stems
    ]


def test_gains_pans_places_and_fades(arranged: dict[str, Any], tmp_path: Path) -> None:
    """Every wish for a stem does what float64 on whole files does, to 32-bit precision."""
    spec = MixSpec.model_validate(arranged | {"normalization": "none", "bit_depth": 32})
    mixdown = mix_files(spec, tmp_path / "mix.wav")
    expected = reference(spec, 48_000)
    samples = read(tmp_path / "mix.wav")
    assert samples.shape == expected.shape
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-6)
    assert mixdown.facts["applied_gain_db"] == 0.0


def test_a_mono_mix_of_stereo_is_the_average_of_both_sides(
    arranged: dict[str, Any], tmp_path: Path
) -> None:
    """Pans count as they would in a stereo mix that is then made mono."""
    fields = {"normalization": "none", "bit_depth": 32, "channels": 1}
    spec = MixSpec.model_validate(arranged | fields)
    mix_files(spec, tmp_path / "mix.wav")
    expected = reference(spec, 48_000).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(read(tmp_path / "mix.wav"), expected, rtol=0, atol=1e-6)


def test_no_plan_changes_a_bit(
    stems: list[Path],
    arranged: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By range or from the start, in any groups, windows and order: the same file."""
    for fields in (
        spec_of(*stems).model_dump(),
        arranged | {"normalization": "loudness", "dither": True},
        arranged | {"normalization": "none", "bit_depth": 24},
    ):
        spec = MixSpec.model_validate(fields)
        expected = facts = None
        for parallelism, window, by_range in itertools.product(
            [1, 2, 5], [1000, 4097, 240_000], [True, False]
        ):
            monkeypatch.setattr("waveflow_ray.audio.bus.HELD_BYTES", parallelism * 50_000)
            mixdown = shared_out(
                spec, tmp_path / "mix.wav", parallelism, window, by_range, seed=window
            )
            content = (tmp_path / "mix.wav").read_bytes()
            mixdown.facts.pop("stems", None)
            assert content == (expected or content)
            assert (mixdown.facts, mixdown.peaks) == (facts or (mixdown.facts, mixdown.peaks))
            expected, facts = content, (mixdown.facts, mixdown.peaks)


def test_one_stem_below_the_limit_is_unchanged(tmp_path: Path) -> None:
    """A 16-bit stem with peaks up to the limit is in the mix bit for bit."""
    source = np.random.default_rng(0).integers(-LIMIT, LIMIT + 1, (5000, 2), np.int16)
    soundfile.write(tmp_path / "a.wav", source, 44100)
    _, mixdown = mixed(tmp_path / "a.wav")
    out = tmp_path / "mix.out"
    np.testing.assert_array_equal(soundfile.read(out, dtype="int16")[0], source)
    assert mixdown.gain == 1.0


@pytest.mark.parametrize("n_stems", [1, 2, 3, 5])
def test_peak_is_at_most_095(tmp_path: Path, n_stems: int) -> None:
    """Stems at full scale, both signs, end exactly at the highest sample that is permitted."""
    extremes = np.tile(np.array([[-32768, 32767]], np.int16), (600, 1))
    soundfile.write(tmp_path / "a.wav", extremes, 44100)
    samples, mixdown = mixed(*[tmp_path / "a.wav"] * n_stems)
    assert np.abs(samples).max() * 32768 == LIMIT
    assert mixdown.peak == LIMIT / 32768 <= 0.95
    assert mixdown.gain * n_stems < 1.0
    samples, _ = mixed(*[tmp_path / "a.wav"] * n_stems, bit_depth=32)
    assert np.abs(samples).max() == pytest.approx(0.95, abs=1e-6)


def test_quiet_mixes_are_not_made_louder(tmp_path: Path) -> None:
    """The average is lowered, never raised."""
    path = write(tmp_path / "a", noise(1, 2000, 1, 0.01))
    samples, mixdown = mixed(path, path)
    assert mixdown.gain == 0.5
    np.testing.assert_array_equal(samples, read(path))


@pytest.mark.parametrize("normalization", ["average", "peak", "loudness", "none"])
def test_silence_mixes_to_silence(tmp_path: Path, normalization: str) -> None:
    """Nothing is divided by a peak of 0, and there is no level to tell."""
    path = write(tmp_path / "a", np.zeros((50_000, 2)))
    samples, mixdown = mixed(path, path, path, normalization=normalization)
    assert (mixdown.peak, set(mixdown.peaks), samples.any()) == (0.0, {0.0}, False)
    assert mixdown.facts["integrated_lufs"] is None
    assert mixdown.facts["true_peak_dbtp"] is None
    assert mixdown.facts["sample_peak_dbfs"] is None


def test_mono_stems_make_a_mono_mix(tmp_path: Path) -> None:
    """Only mono stems: one channel. One stereo stem among them: two, the mono in both."""
    mono = write(tmp_path / "m", noise(1, 1000, 1))
    stereo = write(tmp_path / "s", np.zeros((1000, 2)))
    assert mixed(mono, mono)[1].channels == 1
    samples, mixdown = mixed(mono, stereo)
    assert mixdown.channels == 2
    np.testing.assert_array_equal(samples[:, 0], samples[:, 1])
    np.testing.assert_allclose(samples[:, :1], read(mono) / 2, rtol=0, atol=0.51 / 32768)


def test_waveform_is_that_of_the_file_written(stems: list[Path]) -> None:
    """4000 peaks, computed from the very samples of the mix."""
    samples, mixdown = mixed(*stems)
    mono = np.abs(samples.mean(axis=1))
    size = len(mono) // 4000
    expected = mono[: size * 4000].reshape(4000, size).max(axis=1)
    np.testing.assert_allclose(mixdown.peaks, expected / expected.max(), rtol=0, atol=TOLERANCE)


def test_peak_normalisation(stems: list[Path]) -> None:
    """The loudest sample is where it was asked for, up or down."""
    quiet = [{"path": str(path), "gain_db": -30} for path in stems]
    for fields, target in (
        ({}, -1.0),
        ({"target_peak_dbfs": -6.0}, -6.0),
        ({"stems": quiet, "target_peak_dbfs": 0.0, "bit_depth": 32}, 0.0),
    ):
        samples, mixdown = mixed(*stems, normalization="peak", **fields)
        assert 20 * np.log10(np.abs(samples).max()) == pytest.approx(target, abs=1e-3)
        assert np.abs(samples).max() <= 10 ** (target / 20)
        assert mixdown.facts["sample_peak_dbfs"] == pytest.approx(target, abs=0.01)


def test_loudness_normalisation(tmp_path: Path) -> None:
    """Brought to the target; where the true peak forbids it, lower, and the result says so."""
    path = write(tmp_path / "a", noise(1, 200_000, 2, 0.01), encoding="FLOAT")
    _, mixdown = mixed(path, normalization="loudness", target_lufs=-20, bit_depth=32)
    assert mixdown.facts["integrated_lufs"] == -20.0
    assert mixdown.facts["limited_by_true_peak_db"] == 0.0
    _, again = mixed(path.with_name("mix.out"), normalization="none")
    assert again.facts["integrated_lufs"] == pytest.approx(-20.0, abs=0.02)

    _, limited = mixed(path, normalization="loudness", target_lufs=-3, true_peak_dbtp=-2)
    facts = limited.facts
    assert facts["true_peak_dbtp"] == -2.0
    assert facts["limited_by_true_peak_db"] > 0
    assert facts["integrated_lufs"] == pytest.approx(
        -3 - facts["limited_by_true_peak_db"], abs=0.05
    )


def test_a_sum_that_clips_says_by_how_much(tmp_path: Path) -> None:
    """Without normalisation: clipped in integers and told; whole in float."""
    path = write(tmp_path / "a", np.full((1000, 1), 0.75))
    samples, mixdown = mixed(path, path, normalization="none")
    assert samples.max() == 32767 / 32768
    assert mixdown.facts["clipped_samples"] == 1000
    assert mixdown.facts["clipped_by_db"] == pytest.approx(20 * np.log10(1.5), abs=0.01)
    assert mixdown.facts["sample_peak_dbfs"] == pytest.approx(20 * np.log10(1.5), abs=0.01)
    samples, mixdown = mixed(path, path, normalization="none", bit_depth=32)
    assert samples.max() == 1.5
    assert mixdown.facts["clipped_samples"] == 0


def test_solo_and_mute(stems: list[Path], tmp_path: Path) -> None:
    """Solo silences the others, mute also what is solo; neither counts for the average."""
    a, b, c, *_ = (str(path) for path in stems)
    alone = mix_files(spec_of(stems[0]), tmp_path / "a.wav")
    for wishes in (
        [{"path": a, "solo": True}, {"path": b}],
        [{"path": a}, {"path": b, "mute": True}],
        [{"path": a, "solo": True}, {"path": b, "solo": True, "mute": True}, {"path": c}],
    ):
        mixdown = mix_files(MixSpec.model_validate({"stems": wishes}), tmp_path / "b.wav")
        samples = read(tmp_path / "b.wav")
        np.testing.assert_array_equal(samples, read(tmp_path / "a.wav"))
        assert mixdown.gain == alone.gain
        assert len(mixdown.facts["stems"]) == len(wishes)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_encoded_stems_and_mixes(stems: list[Path], tmp_path: Path, suffix: str) -> None:
    """Mixes of compressed stems, written compressed, sound like those of WAV."""
    source = noise(1, 100_000, 2, 0.3)
    source = np.cumsum(source, axis=0)
    source = source / np.abs(source).max() * 0.5  # brown noise, which codecs keep well
    soundfile.write(tmp_path / f"a.{suffix}", source, 44_100)
    spec = spec_of(tmp_path / f"a.{suffix}", output_format=suffix, normalization="none")
    mixdown = mix_files(spec, tmp_path / f"mix.{suffix}", title="stage 7")
    samples = read(tmp_path / f"mix.{suffix}")[: len(source)]
    assert soundfile.info(tmp_path / f"mix.{suffix}").format == suffix.upper()
    assert mixdown.facts["stems"][0]["duration"] == pytest.approx(100_000 / 44_100, abs=0.06)
    error = samples - source[: len(samples)]
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(source**2))


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_a_file_that_is_begun_anew_is_whole(tmp_path: Path, suffix: str) -> None:
    """Where the likely level was too high: one title, and every frame once."""
    path = write(tmp_path / "a", np.full((100_000, 2), 0.999))
    mix_files(spec_of(path, path, output_format=suffix), tmp_path / "mix", title="stage 7")
    with soundfile.SoundFile(tmp_path / "mix") as file:
        assert (file.title, file.frames) == ("stage 7", 100_000)
        assert np.abs(file.read()[50_000] - 0.95).max() < 0.02  # not 0.999
    assert (tmp_path / "mix").read_bytes().count(b"stage 7") == 1


def test_a_fade_out_of_an_mp3_ends_at_its_end(tmp_path: Path) -> None:
    """The length that a header claims is not trusted where a fade depends on it."""
    soundfile.write(tmp_path / "a.mp3", np.full((60_000, 1), 0.5), 44_100)
    frames = len(read(tmp_path / "a.mp3"))
    stems = [{"path": str(tmp_path / "a.mp3"), "fade_out_s": 0.5}]
    samples, mixdown = mixed(tmp_path / "a.mp3", stems=stems, normalization="none", bit_depth=32)
    assert mixdown.frames == frames
    expected = 0.5 * np.minimum(1, (frames - np.arange(frames)) / 22_050)
    np.testing.assert_allclose(samples[5000:-2000, 0], expected[5000:-2000], rtol=0, atol=0.01)


def test_float_samples_have_headroom(tmp_path: Path) -> None:
    """Float stems up to 8 times full scale are scaled, not clipped; beyond, they are clipped."""
    loud = np.array([0.0, 1.0, -4.0, 7.5, -8.0, 100.0])[:, None]
    path = write(tmp_path / "a", loud, encoding="FLOAT")
    samples, _ = mixed(path)
    expected = np.clip(loud, -8, 8) * (0.95 / 8)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=TOLERANCE)


def test_clipped_floats_at_every_stem_do_not_wrap(tmp_path: Path) -> None:
    """Four stems at +8 (clipped), also amplified: near the end of int32, not beyond."""
    path = write(tmp_path / "a", np.full((10, 1), 50.0), encoding="FLOAT")
    for gain_db in (0.0, 20.0, -5.0):
        stems = [{"path": str(path), "gain_db": gain_db, "pan": 1} for _ in range(4)]
        samples, _ = mixed(path, stems=stems, normalization="none", bit_depth=32)
        assert samples[0, 0] == pytest.approx(0.0, abs=1e-6)
        assert samples[0, 1] >= 4 * 8 * 0.99 * min(1.0, 10 ** (gain_db / 20))


@pytest.mark.parametrize("own_rate", [8000, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("frames", [1, 10, 5_000, 140_001])
def test_resampling_in_blocks_is_resampling_at_once(
    tmp_path: Path, own_rate: int, channels: int, frames: int
) -> None:
    """A stem in the mix has the length and samples of soxr on the whole file."""
    path = write(tmp_path / "a", noise(9, frames, channels), own_rate)
    expected = soxr.resample(read(path), own_rate, 48_000, quality="HQ")
    if not len(expected):
        return
    samples, _ = mixed(path, sample_rate=48_000, normalization="none", bit_depth=32)
    assert samples.shape == expected.shape
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-5)


def test_surround_becomes_stereo_by_the_standard() -> None:
    """5.1: centre and surrounds at -3 dB, no low frequency effects, no more than full scale."""
    whole, part = 0.5 / (1 + np.sqrt(2)), 0.5 / (1 + np.sqrt(2)) / np.sqrt(2)
    expected = np.array([[whole, 0], [0, whole], [part, part], [0, 0], [part, 0], [0, part]])
    block = (np.eye(6) * 0.5).astype(np.float32)
    np.testing.assert_allclose(to_stereo(block, "WAV"), expected, rtol=0, atol=1e-6)
    in_vorbis_order = block[:, [0, 2, 1, 4, 5, 3]]
    np.testing.assert_allclose(to_stereo(in_vorbis_order, "OGG"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 4, 5, 7, 8])
def test_other_layouts_are_averaged_by_side(tmp_path: Path, channels: int) -> None:
    """Odd channels left, even ones right, full scale stays full scale."""
    source = noise(1, 100, channels)
    path = write(tmp_path / "a", source, encoding="FLOAT")
    samples, _ = mixed(path, normalization="none", bit_depth=32)
    expected = np.stack([source[:, 0::2].mean(axis=1), source[:, 1::2].mean(axis=1)], axis=1)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-6)


def test_a_stem_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    """No mix is made of part of a stem, the error names it, and nothing is left behind."""
    path = write(tmp_path / "drums.wav", noise(1, 5000, 2))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(JobError, match=r"drums\.wav") as caught:
        mix_files(spec_of(path), tmp_path / "mix.wav")
    assert caught.value.code is ErrorCode.TRUNCATED_AUDIO
    assert list(tmp_path.iterdir()) == [path]


def test_a_mix_may_replace_one_of_its_stems(tmp_path: Path) -> None:
    """Its name is taken only when it is done."""
    path = write(tmp_path / "a.wav", noise(1, 5000, 2))
    before = read(path)
    mix_files(spec_of(path, path), path)
    np.testing.assert_allclose(read(path), before, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("held_bytes", [0, 40, 1000])
def test_windows_of_unlike_length_add_up(
    scratch_fd: int, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer window after a shorter one, a shorter after a longer, and one far ahead."""
    monkeypatch.setattr("waveflow_ray.audio.bus.HELD_BYTES", held_bytes)
    bus = MixBus(scratch_fd, MixFormat(44_100, 1, 28, 10))
    bus.add(3, np.full((2, 1), 5, np.int32))
    bus.add(0, np.full((4, 1), 1, np.int32))
    bus.add(0, np.full((10, 1), 2, np.int32))
    bus.add(0, np.full((3, 1), 3, np.int32))
    assert bus.frames == 32
    expected = [6] * 3 + [3] + [2] * 6 + [0] * 20 + [5] * 2
    windows = [bus.window(index)[:, 0] for index in range(4)]
    assert [len(window) for window in windows] == [10, 10, 10, 2]
    np.testing.assert_array_equal(np.concatenate(windows), expected)


@pytest.mark.parametrize(
    "window", [np.zeros((11, 2), np.int32), np.zeros((5, 1), np.int32), np.zeros((5, 2))]
)
def test_windows_of_another_format_are_refused(scratch_fd: int, window: NDArray[np.int32]) -> None:
    """Too long, of other channels or no int32: a mistake of the program, not of the audio."""
    with pytest.raises(ValueError, match="does not fit"):
        MixBus(scratch_fd, MixFormat(44_100, 2, 28, 10)).add(0, window)


def test_progress_is_told_in_frames(tmp_path: Path) -> None:
    """It only grows, and ends with all of them."""
    told: list[tuple[int, int]] = []
    path = write(tmp_path / "a", noise(1, 1_200_000, 1))
    mix_files(spec_of(path), tmp_path / "m.wav", progress=lambda *frames: told.append(frames))
    assert told == [(524_288, 1_200_000), (1_048_576, 1_200_000), (1_200_000, 1_200_000)]


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_memory_does_not_grow_with_length(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mix of six windows takes no more memory than one of three, beyond those that are held."""
    monkeypatch.setattr("waveflow_ray.audio.bus.HELD_BYTES", 0)

    def peak_bytes(frames: int) -> int:
        path = tmp_path / f"{frames}.{suffix}"
        soundfile.write(path, np.full((frames, 2), 0.25), 8000)
        tracemalloc.start()
        mix_files(spec_of(path, path), tmp_path / "mix.wav")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1000)  # what is imported and compiled at first use
    assert peak_bytes(3_000_000) < peak_bytes(1_500_000) * 1.05

"""The demo's song: the promised files, at the promised levels, in time."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from waveflow_ray.local.song import BEAT_S, PARTS, Stem, make_song

SECONDS = 8.0


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> list[Stem]:
    return make_song(tmp_path_factory.mktemp("song"), seconds=SECONDS)


def read(stem: Stem) -> np.ndarray:
    return sf.read(stem.path, dtype="float32", always_2d=True)[0]


def test_the_stems_cover_the_formats_a_musician_uploads(song: list[Stem]) -> None:
    formats = {(info.format, info.subtype) for info in (sf.info(stem.path) for stem in song)}
    assert len(song) >= 8
    assert formats == {
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
        ("OGG", "VORBIS"),
    }


def test_each_file_is_what_its_stem_says(song: list[Stem]) -> None:
    assert [stem.name for stem in song] == list(PARTS)
    for stem in song:
        info = sf.info(stem.path)
        assert (info.samplerate, info.channels) == (stem.sample_rate, stem.channels)
        assert stem.encoding.startswith(info.format)
    assert sorted(stem.sample_rate for stem in song) == [44100] * (len(song) - 1) + [48000]
    assert sorted(stem.channels for stem in song) == [1] + [2] * (len(song) - 1)


def test_all_stems_last_equally_long(song: list[Stem]) -> None:
    for stem in song:
        # MP3 may keep its encoder's padding; 50 ms is less than two of its frames.
        assert len(read(stem)) / stem.sample_rate == pytest.approx(SECONDS, abs=0.05)


def test_every_stem_leaves_headroom_and_is_heard(song: list[Stem]) -> None:
    for stem in song:
        samples = read(stem)
        assert -12 <= 20 * np.log10(np.abs(samples).max()) <= -1, stem.name
        assert np.abs(samples.mean(axis=0)).max() < 1e-3, f"{stem.name}: DC"
        assert np.abs(samples[-10:]).max() < 1e-3, f"{stem.name}: does not fade out"


def test_the_sum_of_the_stems_does_not_clip(song: list[Stem]) -> None:
    stems = [read(stem) for stem in song if stem.sample_rate == 44100]
    frames = min(map(len, stems))
    total = sum(stem[:frames] for stem in stems)  # mono adds to both sides
    assert np.abs(total).max() < 1


def test_the_drums_beat_at_120_bpm(song: list[Stem]) -> None:
    drums = next(stem for stem in song if stem.name == "drums")
    # Energy in steps of 10 ms; where it rises is an onset.
    energy = (read(drums).mean(axis=1) ** 2).reshape(-1, drums.sample_rate // 100).mean(axis=1)
    onsets = np.maximum(0, np.diff(energy, prepend=0))
    beat = round(100 * BEAT_S)
    on_the_beat = onsets[: len(onsets) // beat * beat].reshape(-1, beat).sum(axis=0)
    assert on_the_beat[[0, 1, -1]].sum() > 0.5 * on_the_beat.sum()


def test_the_same_seed_gives_the_same_samples(song: list[Stem], tmp_path: Path) -> None:
    for stem, again in zip(song, make_song(tmp_path, seconds=SECONDS), strict=True):
        np.testing.assert_array_equal(read(stem), read(again), err_msg=stem.name)


def test_another_seed_gives_another_song(song: list[Stem], tmp_path: Path) -> None:
    for stem, other in zip(song, make_song(tmp_path, seconds=2.0, seed=8), strict=True):
        samples = read(other)
        assert not np.array_equal(read(stem)[: len(samples)], samples), stem.name

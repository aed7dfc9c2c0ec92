"""What a mix is written as: the samples, the tags, the header, the noise."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from waveflow_ray.audio import encode
from waveflow_ray.audio.encode import (
    BLOCK_FRAMES,
    HEADER_BYTES,
    MADE_BY,
    Encoding,
    MixWriter,
    Written,
)
from waveflow_ray.aws.upload import PART_BYTES

BITS = 23
RATE = 44100
LOSSLESS = [
    Encoding("wav", 16),
    Encoding("wav", 24),
    Encoding("wav", 32),
    Encoding("flac", 16),
    Encoding("flac", 24),
]
LOSSY = [Encoding("ogg"), Encoding("mp3")]


def name_of(encoding: Encoding) -> str:
    return f"{encoding.format}{encoding.bit_depth}{'-dither' if encoding.dither else ''}"


def bus(frames: int, channels: int = 2, level: float = 0.9) -> NDArray[np.int32]:
    """A chord over noise, as the bus has it."""
    t = np.arange(frames)[:, None] / RATE
    tone = sum(np.sin(2 * np.pi * hz * t + np.arange(channels)) for hz in (220, 331, 552))
    hiss = np.random.default_rng(3).uniform(-0.1, 0.1, (frames, channels))
    samples = tone / 3.3 + hiss
    return np.rint(samples / np.abs(samples).max() * level * 2**BITS).astype(np.int32)


def encoded(
    samples: NDArray[np.int32],
    encoding: Encoding,
    path: Path,
    blocks: int | None = None,
    **options: Any,
) -> Written:
    """Write the samples, in blocks of so many frames."""
    options = {"factor": 2.0**-BITS, "num_peaks": 100, **options}
    with open(path, "wb+") as file:
        writer = MixWriter(
            file.fileno(),
            encoding,
            sample_rate=RATE,
            channels=samples.shape[1],
            frames=len(samples),
            **options,
        )
        size = blocks or len(samples)
        for start in range(0, len(samples), size):
            writer.add(samples[start : start + size])
        return writer.finish()


@pytest.mark.parametrize("encoding", LOSSLESS, ids=name_of)
@pytest.mark.parametrize("channels", [1, 2])
def test_lossless_files_hold_the_rounded_samples(
    encoding: Encoding, channels: int, tmp_path: Path
) -> None:
    samples = bus(5000, channels)
    encoded(samples, encoding, tmp_path / "mix")
    found, rate = soundfile.read(tmp_path / "mix", always_2d=True)
    steps = 2.0 ** (min(encoding.bit_depth, 24) - 1)
    assert rate == RATE
    assert np.array_equal(found, np.rint(samples * 2.0**-BITS * steps) / steps)


@pytest.mark.parametrize("encoding", LOSSY, ids=name_of)
def test_lossy_files_sound_the_same(encoding: Encoding, tmp_path: Path) -> None:
    """Noise is 20 dB below the music at least, and nothing is shifted in time or level."""
    samples = bus(RATE)
    encoded(samples, encoding, tmp_path / "mix")
    found, _ = soundfile.read(tmp_path / "mix")
    wanted = samples * 2.0**-BITS
    assert len(found) == len(wanted)
    inner = slice(2000, -2000)
    error = found[inner] - wanted[inner]
    assert 10 * np.log10(np.mean(wanted[inner] ** 2) / np.mean(error**2)) > 20


@pytest.mark.parametrize(
    "title",
    ["Größe №1", "b2c7a0de-51f4-4e6b-8f0a-7d9e3c5a1b20 드럼", "license=encoder=libsndfile", None],
)
@pytest.mark.parametrize("encoding", [*LOSSLESS, *LOSSY], ids=name_of)
def test_files_are_tagged(encoding: Encoding, title: str | None, tmp_path: Path) -> None:
    """As soundfile and ffprobe read it: titles of any length and script, and the encoder."""
    encoded(bus(4000), encoding, tmp_path / "mix", title=title)
    with soundfile.SoundFile(tmp_path / "mix") as file:
        assert file.frames == 4000
        tags = file.copy_metadata()
        assert tags.get("title") == title
        assert tags["software"].startswith(MADE_BY)  # libsndfile adds its own name
    if shutil.which("ffprobe"):
        command = ["ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams", "mix"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
        found = json.loads(run.stdout)
        tags = found["streams"][0].get("tags", {}) | found["format"].get("tags", {})
        tags = {name.lower(): value for name, value in tags.items()}
        assert tags.get("title") == title
        assert tags["encoder"].startswith(MADE_BY)


def test_the_encoder_is_in_the_bytes(tmp_path: Path) -> None:
    """As a player finds it: comments in FLAC and OGG, ID3v2.4 in front of an MP3."""
    made_by = MADE_BY.encode()
    encoded(bus(4000), Encoding("flac"), tmp_path / "mix")
    assert b"encoder=" + made_by in (tmp_path / "mix").read_bytes()
    encoded(bus(4000), Encoding("ogg"), tmp_path / "mix")
    assert b"ENCODER=" + made_by in (tmp_path / "mix").read_bytes()
    assert b"ENCODER=libsndfile" not in (tmp_path / "mix").read_bytes()
    encoded(bus(4000), Encoding("mp3"), tmp_path / "mix", title="№1")
    data = (tmp_path / "mix").read_bytes()
    frames = b"".join(
        name + bytes([0, 0, 0, 1 + len(text), 0, 0, 3]) + text
        for name, text in ((b"TSSE", made_by), (b"TIT2", "№1".encode()))
    )
    assert data.startswith(b"ID3\x04\x00\x00" + bytes([0, 0, 0, len(frames)]) + frames + b"\xff")


@pytest.mark.parametrize("blocks", [1, 999, 65537])
@pytest.mark.parametrize(
    "encoding",
    [Encoding("wav", 16, True), Encoding("wav", 24, True), Encoding("flac", 16, True), *LOSSY],
    ids=name_of,
)
def test_block_sizes_do_not_change_a_byte(encoding: Encoding, blocks: int, tmp_path: Path) -> None:
    samples = bus(1500 if blocks == 1 else 70_000)
    if encoding.format == "ogg":
        blocks = BLOCK_FRAMES * (1 + blocks % 3)
    for name, size in (("whole", None), ("cut", blocks)):
        encoded(samples, encoding, tmp_path / name, size, seed=7)
    whole, cut = (soundfile.read(tmp_path / name)[0] for name in ("whole", "cut"))
    assert np.array_equal(whole, cut)
    if encoding.format != "ogg":  # its serial number is random
        assert (tmp_path / "whole").read_bytes() == (tmp_path / "cut").read_bytes()


def test_large_wavs_are_rf64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit, which is lowered here; below it a plain RIFF file."""
    samples = bus(3000)
    monkeypatch.setattr(encode, "WAV_MAX_BYTES", samples.size * 2)
    encoded(samples, Encoding(), tmp_path / "small")
    monkeypatch.setattr(encode, "WAV_MAX_BYTES", samples.size * 2 - 1)
    encoded(samples, Encoding(), tmp_path / "large")
    small, large = ((tmp_path / name).read_bytes() for name in ("small", "large"))
    assert (small[:4], large[:4], large[8:16]) == (b"RIFF", b"RF64", b"WAVEds64")
    assert np.array_equal(*(soundfile.read(tmp_path / name)[0] for name in ("small", "large")))


@pytest.mark.parametrize("bit_depth", [16, 24])
def test_dither_is_triangular_noise_of_one_step(bit_depth: int, tmp_path: Path) -> None:
    """Rounding with it adds 1/4 step² in all, whatever the signal, and no distortion."""
    steps = 2.0 ** (bit_depth - 1)
    # A third of a step: without dither, silence.
    level = np.full((60_000, 1), round(2**28 / steps / 3), np.int32)
    options = {"factor": 2.0**-28, "seed": 11}
    encoded(level, Encoding("wav", bit_depth), tmp_path / "plain", **options)
    encoded(level, Encoding("wav", bit_depth, dither=True), tmp_path / "dithered", **options)
    plain, dithered = (soundfile.read(tmp_path / name)[0] * steps for name in ("plain", "dithered"))
    assert not plain.any()
    error = dithered - 1 / 3
    assert np.abs(error).max() < 1.5
    assert error.mean() == pytest.approx(0, abs=0.01)
    assert error.var() == pytest.approx(1 / 4, abs=0.01)
    # White: no two neighbours alike, no tone.
    assert np.mean(error[1:] * error[:-1]) == pytest.approx(0, abs=0.01)
    power = np.abs(np.fft.rfft(error)) ** 2
    assert power[1:].max() < 30 * power[1:].mean()


def test_dither_is_the_seeds(tmp_path: Path) -> None:
    samples = bus(3000, level=0.001)
    for name, seed in (("a", 2**64 - 1), ("b", 2**64 - 1), ("c", 2**64 - 2)):
        encoded(samples, Encoding("wav", 16, dither=True), tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_what_is_beyond_full_scale_is_counted(tmp_path: Path) -> None:
    samples = np.array([[0], [3 << BITS], [-(2 << BITS)], [1 << BITS]], np.int32)
    written = encoded(samples, Encoding(), tmp_path / "mix")
    found, _ = soundfile.read(tmp_path / "mix", dtype="int16")
    assert found.tolist() == [0, 32767, -32768, 32767]
    assert written.clipped_samples == 3
    assert written.over_db == pytest.approx(20 * np.log10(3))
    floats = encoded(samples, Encoding("wav", 32), tmp_path / "mix")
    assert (floats.clipped_samples, floats.over_db) == (0, 0.0)
    assert soundfile.read(tmp_path / "mix")[0].tolist() == [0, 3, -2, 1]


@pytest.mark.parametrize("encoding", [*LOSSLESS, *LOSSY], ids=name_of)
def test_only_the_header_changes_later(encoding: Encoding, tmp_path: Path) -> None:
    """What is behind it was final when it was written, so it can be uploaded meanwhile."""
    samples = np.random.default_rng(1).integers(-(2**20), 2**20, (3_000_000, 2), np.int32)
    samples = samples[:1_500_000] if encoding.format == "mp3" else samples
    seen = io.BytesIO()
    with open(tmp_path / "mix", "wb+") as file:
        writer = MixWriter(
            file.fileno(),
            encoding,
            sample_rate=RATE,
            channels=2,
            frames=len(samples),
            factor=2.0**-BITS,
            num_peaks=100,
            title="t" * 200,
        )
        for start in range(0, len(samples), 1 << 18):
            writer.add(samples[start : start + (1 << 18)])
            file.seek(len(seen.getvalue()))
            seen.seek(0, io.SEEK_END)
            seen.write(file.read(writer.written - seen.tell()))
        writer.finish()
        file.seek(0)
        whole = file.read()
    early = seen.getvalue()
    assert len(early) > HEADER_BYTES
    assert early[HEADER_BYTES:] == whole[HEADER_BYTES : len(early)]
    assert HEADER_BYTES <= PART_BYTES


def test_a_full_disk_is_an_os_error() -> None:
    with pytest.raises(OSError, match="the mix cannot be written"):
        encoded(bus(200_000, 1), Encoding(), Path("/dev/full"))

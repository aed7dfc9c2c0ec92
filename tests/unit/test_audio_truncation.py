"""Files that break off, and files that only look as if they did."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from waveflow_ray.audio.decode import open_audio
from waveflow_ray.audio.mpeg import frame_header
from waveflow_ray.errors import JobError

FRAMES = 44100 * 4
DECODER_DELAY = 529
"""Frames that every MP3 decoder has too many at the start; dropped."""
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wavex": ("WAVEX", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "aifc": ("AIFF", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "flac24": ("FLAC", "PCM_24"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Four seconds of noise and tone in every format."""
    rng = np.random.default_rng(7)
    samples = 0.3 * np.sin(np.arange(FRAMES) * 0.03)[:, None] + rng.uniform(-0.2, 0.2, (FRAMES, 2))
    encoded = {}
    for name, (container, encoding) in FORMATS.items():
        file = io.BytesIO()
        with soundfile.SoundFile(file, "w", 44100, 2, encoding, format=container) as out:
            for start in range(0, FRAMES, 44100):
                out.write(samples[start : start + 44100])
        encoded[name] = file.getvalue()
    return encoded


def outcome(path: Path, data: bytes, block_frames: int = 9999) -> tuple[int, bool]:
    """Frames read and whether the reader calls the file truncated."""
    path.write_bytes(data)
    with open_audio(path) as reader:
        frames = sum(len(block) for block in reader.blocks(block_frames))
        assert frames == reader.frames_read
        return frames, reader.truncated


def without_xing(mp3: bytes) -> bytes:
    first = frame_header(mp3)
    assert first is not None
    assert b"Info" in mp3[: first.length] or b"Xing" in mp3[: first.length]
    return mp3[first.length :]


@pytest.mark.parametrize("name", FORMATS)
def test_whole_files_are_not_truncated(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    """No false alarm."""
    assert outcome(tmp_path / "a", files[name]) == (FRAMES, False)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("missing", [1, 300, 0.5])
def test_a_missing_end_is_noticed(
    tmp_path: Path, files: dict[str, bytes], name: str, missing: float
) -> None:
    """One byte, one page or half of the file: what is there is read, and known to be cut."""
    data = files[name]
    keep = len(data) - missing if missing >= 1 else int(len(data) * missing)
    frames, truncated = outcome(tmp_path / "a", data[: int(keep)])
    assert truncated
    assert FRAMES * 0.2 < frames < FRAMES


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "tail", [b"TAG" + bytes(125), bytes(70_000), b"APETAGEX" + b"x" * 5000, b"some text " * 9000]
)
def test_what_follows_the_audio_does_not_matter(
    tmp_path: Path, files: dict[str, bytes], name: str, tail: bytes
) -> None:
    """Tags, padding and garbage at the end cost no frame and are no truncation."""
    assert outcome(tmp_path / "a", files[name] + tail) == (FRAMES, False)


@pytest.mark.parametrize("name", ["flac", "flac24", "mp3", "ogg"])
def test_damage_in_the_middle_is_noticed(
    tmp_path: Path, files: dict[str, bytes], name: str
) -> None:
    """A compressed file that is overwritten half-way is read up to there, at any block size."""
    data = bytearray(files[name])
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(i * 7919 >> 3 & 255 for i in range(20_000))
    outcomes = {outcome(tmp_path / "a", bytes(data), size) for size in (1000, 4096, 200_000)}
    assert len(outcomes) == 1
    frames, truncated = outcomes.pop()
    assert truncated
    assert 0 < frames < FRAMES


def test_frames_before_an_error_are_the_true_ones(tmp_path: Path, files: dict[str, bytes]) -> None:
    """What is salvaged of a block with an error in it is what was encoded."""

    def samples(data: bytes) -> NDArray[np.generic]:
        (tmp_path / "a").write_bytes(data)
        with open_audio(tmp_path / "a") as reader:
            return np.concatenate([block.copy() for block in reader.blocks(100_000)])

    for name in ("flac", "flac24"):
        part = samples(files[name][: len(files[name]) // 2])
        assert len(part) > FRAMES * 0.4
        np.testing.assert_array_equal(part, samples(files[name])[: len(part)])


def patched_wav(wav: bytes, riff_size: int, data_size: int) -> bytes:
    assert wav[36:40] == b"data"
    return (
        wav[:4] + struct.pack("<I", riff_size) + wav[8:40] + struct.pack("<I", data_size) + wav[44:]
    )


@pytest.mark.parametrize(
    ("riff_size", "data_size"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),  # ffmpeg into a pipe
        (0x7FFFF024, 0x7FFFF000),  # sox into a pipe
        (0xFFFFFFFF, 0xFFFFFFDB),
        (0, 0),  # a recorder that was switched off
    ],
)
@pytest.mark.parametrize("extra_chunk", [b"", b"LIST\x05\0\0\0abcde\0"])
def test_streamed_wav_reaches_to_the_end(
    tmp_path: Path, files: dict[str, bytes], riff_size: int, data_size: int, extra_chunk: bytes
) -> None:
    """A size that could not be known when it was written means 'all the rest'."""
    data = patched_wav(files["wav"], riff_size, data_size)
    data = data[:36] + extra_chunk + data[36:]
    assert outcome(tmp_path / "a", data) == (FRAMES, False)


def test_streamed_aiff_reaches_to_the_end(tmp_path: Path, files: dict[str, bytes]) -> None:
    """The same for AIFF, as ffmpeg writes it into a pipe."""
    data = bytearray(files["aiff"])
    comm, ssnd = data.index(b"COMM"), data.index(b"SSND")
    data[4:8] = data[comm + 10 : comm + 14] = data[ssnd + 4 : ssnd + 8] = bytes(4)
    assert outcome(tmp_path / "a", bytes(data)) == (FRAMES, False)


def test_streamed_flac_reaches_to_the_end(tmp_path: Path, files: dict[str, bytes]) -> None:
    """A total of 0 in STREAMINFO means unknown; cut files are still noticed."""
    data = bytearray(files["flac"])
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert outcome(tmp_path / "a", bytes(data)) == (FRAMES, False)
    assert outcome(tmp_path / "a", bytes(data[:-500]))[1]


def test_wav_that_claims_more_than_there_is(tmp_path: Path, files: dict[str, bytes]) -> None:
    """By two bytes or by two gigabytes, it is truncated, and nothing is allocated for it."""
    size = len(files["wav"]) - 44
    assert outcome(tmp_path / "a", patched_wav(files["wav"], size + 38, size + 2)) == (FRAMES, True)
    assert outcome(tmp_path / "a", patched_wav(files["wav"], 1 << 31, 2_000_000_000)) == (
        FRAMES,
        True,
    )


def test_mp3_without_xing_header_is_counted(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Its length is counted, not estimated, and a cut last frame is noticed."""
    data = without_xing(files["mp3"])
    (tmp_path / "a").write_bytes(data)
    with open_audio(tmp_path / "a") as reader:
        frames = sum(len(block) for block in reader.blocks())
        assert reader.claimed_frames == frames
        assert (frames + DECODER_DELAY) % 1152 == 0
        assert not reader.truncated
    assert frames >= FRAMES
    assert outcome(tmp_path / "a", data[:-1]) == (frames - 1152, True)
    assert outcome(tmp_path / "a", data + bytes(70_000)) == (frames, False)


@pytest.mark.parametrize("before", [b"\0", bytes(513), b"\r\nhello" * 20])
def test_garbage_before_an_mp3_costs_nothing(
    tmp_path: Path, files: dict[str, bytes], before: bytes
) -> None:
    """Decoding begins with the first frame, whatever the name of the file."""
    assert outcome(tmp_path / "a", before + files["mp3"]) == (FRAMES, False)


def test_joined_mp3s_are_read_to_the_end(tmp_path: Path, files: dict[str, bytes]) -> None:
    """The Xing header of the first of several files joined end to end is not believed."""
    frames, truncated = outcome(tmp_path / "a", files["mp3"] + without_xing(files["mp3"]))
    assert frames > 1.9 * FRAMES
    assert not truncated


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_end_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    """Whatever is done to a header, a file is read or refused; nothing else is raised."""
    name = data.draw(st.sampled_from(sorted(FORMATS)))
    damaged = bytearray(files[name][: data.draw(st.integers(0, 20_000))])
    for _ in range(data.draw(st.integers(0, 8))):
        if damaged:
            at = data.draw(st.integers(0, min(len(damaged), 400) - 1))
            damaged[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a"
    message = "fine."
    try:
        frames, _ = outcome(path, bytes(damaged))
    except JobError as error:
        frames, message = 1, error.message
    assert frames > 0
    assert message.endswith(".")

"""PCM files whose samples can be fetched by byte range.

`pcm_layout` says yes only where it is certain: where it does, the samples are those that
`AudioReader` reads from the whole file. Everything else is left to libsndfile. Only of several
data chunks, which neither format permits, it is the first here, and the last there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waveflow_ray.audio.container import is_streamed
from waveflow_ray.audio.samples import (
    MAX_CHANNELS,
    MAX_RATE_HZ,
    MIN_RATE_HZ,
    Block,
    silence_non_finite,
)

MAX_CHUNKS = 64
STRETCH = 32 * 1024
"""Samples that are converted at a time, so that the numbers between stay in the cache."""
SAMPLE_BYTES = {
    "PCM_U8": 1,
    "PCM_S8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
}
_WAV_ENCODINGS = {
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
}
_LOOSE = frozenset({b"acid", b"basc", b"cue ", b"MARK"})
"""Chunks that libsndfile reads without regard to their length, and after which it can be lost."""
_EXTENSIBLE = 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
_AIFF_INTEGERS = {8: "PCM_S8", 16: "PCM_16", 24: "PCM_24", 32: "PCM_32"}
_AIFC_FLOATS = {
    b"fl32": ("FLOAT", 32),
    b"FL32": ("FLOAT", 32),
    b"fl64": ("DOUBLE", 64),
    b"FL64": ("DOUBLE", 64),
}


@dataclass(frozen=True)
class PcmLayout:
    """Where the samples of a PCM file lie.

    Attributes:
        container, encoding: as libsndfile names them (`AudioReader`).
        sample_rate: in Hz.
        data_start: byte offset of the first frame.
        frames: how many there are.
    """

    container: str
    encoding: str
    big_endian: bool
    sample_rate: int
    channels: int
    data_start: int
    frames: int

    @property
    def frame_bytes(self) -> int:
        """Size of one sample of every channel."""
        return SAMPLE_BYTES[self.encoding] * self.channels

    def byte_range(self, first_frame: int, frames: int) -> tuple[int, int]:
        """Start and stop of so many frames in the file."""
        start = self.data_start + first_frame * self.frame_bytes
        return start, start + frames * self.frame_bytes


def pcm_layout(head: bytes, size: int) -> PcmLayout | None:
    """The layout of a WAV or AIFF file, or None where anything about it is unusual.

    Args:
        head: the first bytes of the file, at least to its first sample.
        size: of the whole file, in bytes.
    """
    try:
        if head[8:12] == b"WAVE" and head[:4] in (b"RIFF", b"RIFX", b"RF64"):
            layout = _wav_layout(head, size)
        elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            layout = _aiff_layout(head, size)
        else:
            return None
    except struct.error:  # a chunk runs out of the head
        return None
    if layout is None or not (
        1 <= layout.channels <= MAX_CHANNELS
        and MIN_RATE_HZ <= layout.sample_rate <= MAX_RATE_HZ
        and layout.frames > 0
        and layout.data_start <= len(head)
    ):
        return None
    return layout


def _wav_layout(head: bytes, size: int) -> PcmLayout | None:
    order = ">" if head[:4] == b"RIFX" else "<"
    form: tuple[int, int, int, str, str] | None = None
    long_size = long_frames = 0
    at = 12
    for _ in range(MAX_CHUNKS):
        name, length = struct.unpack_from(f"{order}4sI", head, at)
        if name == b"ds64" and head[:4] == b"RF64":
            long_size, long_frames = struct.unpack_from("<QQ", head, at + 16)
        elif name == b"fmt ":
            if form is not None or (form := _wav_format(head, at + 8, length, order)) is None:
                return None
        elif name == b"data":
            if form is None:
                return None
            channels, rate, align, encoding, container = form
            if head[:4] == b"RF64":
                container = "RF64"
                if length != 0xFFFFFFFF or long_frames * align != long_size:
                    return None
                length = long_size
            elif is_streamed(length):
                return None
            if length == 0 or length % align or at + 8 + length > size:
                return None
            is_big = order == ">"
            return PcmLayout(container, encoding, is_big, rate, channels, at + 8, length // align)
        elif name in _LOOSE or not name.strip(b" ").isalnum():
            return None
        at += 8 + length + length % 2
    return None


def _wav_format(
    head: bytes, at: int, length: int, order: str
) -> tuple[int, int, int, str, str] | None:
    tag, channels, rate, _, align, bits = struct.unpack_from(f"{order}HHIIHH", head, at)
    container = "WAV"
    if tag == _EXTENSIBLE:
        valid_bits, _, tag = struct.unpack_from(f"{order}HIH", head, at + 18)
        tail = head[at + 26 : at + 40]
        if length < 40 or valid_bits != bits or tail != _GUID_TAIL:
            return None
        container = "WAVEX"
    elif length not in (16, 18):
        return None
    encoding = _WAV_ENCODINGS.get((tag, bits))
    if encoding is None or not channels or align != channels * bits // 8:
        return None
    return channels, rate, align, encoding, container


def _aiff_layout(head: bytes, size: int) -> PcmLayout | None:
    form: tuple[int, int, int, str, bool] | None = None
    at = 12
    for _ in range(MAX_CHUNKS):
        name, length = struct.unpack_from(">4sI", head, at)
        if name == b"COMM":
            is_plain = head[8:12] == b"AIFF"
            if form is not None or (form := _aiff_format(head, at + 8, length, is_plain)) is None:
                return None
        elif name == b"SSND":
            if form is None or length < 8 or at + 8 + length > size:
                return None
            offset, block = struct.unpack_from(">II", head, at + 8)
            channels, frames, rate, encoding, is_big = form
            layout = PcmLayout("AIFF", encoding, is_big, rate, channels, at + 16, frames)
            # libsndfile counts the byte that makes the length even as one of the samples.
            rest = length - 8 - frames * layout.frame_bytes
            if offset or block or rest not in (0, 1) or rest == layout.frame_bytes:
                return None
            return layout
        elif name in _LOOSE or not name.strip(b" ").isalnum():
            return None
        at += 8 + length + length % 2
    return None


def _aiff_format(
    head: bytes, at: int, length: int, is_plain: bool
) -> tuple[int, int, int, str, bool] | None:
    channels, frames, bits, exponent, mantissa = struct.unpack_from(">hIhHQ", head, at)
    shift = 63 - (exponent - 16383)
    if not 40 <= shift <= 63 or mantissa & ((1 << shift) - 1):
        return None
    rate = mantissa >> shift
    kind = b"NONE"
    if not is_plain:
        (kind,) = struct.unpack_from(">4s", head, at + 18)
    elif length != 18:
        return None
    if kind in _AIFC_FLOATS:
        encoding, expected = _AIFC_FLOATS[kind]
        return (channels, frames, rate, encoding, True) if bits == expected else None
    if kind not in (b"NONE", b"twos", b"sowt") or bits not in _AIFF_INTEGERS:
        return None
    if kind == b"sowt" and bits == 8:
        return None
    return channels, frames, rate, _AIFF_INTEGERS[bits], kind != b"sowt"


def widen_24_bits(data: Any, out: NDArray[np.int32], *, big_endian: bool = False) -> None:
    """Samples of 24 bits as the upper bits of 32, the lower 8 being 0.

    Args:
        data: a buffer of ``3 * n`` bytes.
        out: C-contiguous, of n samples in all.
    """
    out = out.reshape(-1)
    if not len(out):
        return
    # All but the last lie in 4 bytes of `data`, together with one of the sample behind.
    order = ">" if big_endian else "<"
    four = np.ndarray(len(out) - 1, f"{order}i4", data, strides=(3,))
    if big_endian:
        np.bitwise_and(four, np.int32(-256), out=out[:-1])
    else:
        np.left_shift(four, np.int32(8), out=out[:-1])
    last = bytes(memoryview(data)[3 * len(out) - 3 : 3 * len(out)])
    out[-1] = int.from_bytes(last, "big" if big_endian else "little", signed=True) << 8


def _by_numba(data: memoryview, big_endian: bool) -> NDArray[np.float32]:
    from waveflow_ray.audio.kernels import pcm24_to_float

    samples = np.empty(len(data) // 3, np.float32)
    pcm24_to_float(np.frombuffer(data, np.uint8), samples, big_endian)
    return samples


def _by_numpy(data: memoryview, big_endian: bool) -> NDArray[np.float32]:
    samples = np.empty(len(data) // 3, np.float32)
    integers = np.empty(min(len(samples), STRETCH), np.int32)
    for start in range(0, len(samples), STRETCH):
        out = samples[start : start + STRETCH]
        widen_24_bits(data[3 * start :], integers[: len(out)], big_endian=big_endian)
        to_float(integers[: len(out)], out)
    return samples


def to_float(
    integers: NDArray[np.int32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Integers of 32 bits, full scale 2^31, as float32 of full scale 1.0; 24 bits are exact.

    Args:
        out: of the same shape; new by default.
    """
    out = np.empty(integers.shape, np.float32) if out is None else out
    return np.multiply(integers, np.float32(2.0**-31), out=out, casting="unsafe")


def decode(data: Any, layout: PcmLayout, *, numba: bool = True) -> Block:
    """Whole frames as samples.

    Args:
        data: a buffer of bytes.
        numba: take 24 bits apart by a compiled loop. It needs half the time, but to load it takes
            0.6 s and 65 MB: for mixes, which have it loaded anyway.

    Returns:
        as `AudioReader.blocks`: int16 for 8 and 16 bits, else float32, ``(n, channels)``; may
        be a view of `data`.
    """
    order = ">" if layout.big_endian else "<"
    samples: NDArray[Any]
    match layout.encoding:
        case "PCM_U8":
            unsigned = np.frombuffer(data, np.uint8).astype(np.int16)
            samples = (unsigned - np.int16(128)) << 8
        case "PCM_S8":
            samples = np.frombuffer(data, np.int8).astype(np.int16) << 8
        case "PCM_16":
            samples = np.frombuffer(data, f"{order}i2").astype(np.int16, copy=False)
        case "PCM_24":
            from_24_bits = _by_numba if numba else _by_numpy
            samples = from_24_bits(memoryview(data), layout.big_endian)
        case "PCM_32":
            samples = to_float(np.frombuffer(data, f"{order}i4"))
        case _:
            width = SAMPLE_BYTES[layout.encoding]
            with np.errstate(over="ignore", invalid="ignore"):
                samples = np.frombuffer(data, f"{order}f{width}").astype(np.float32)
            silence_non_finite(samples)
    return samples.reshape(-1, layout.channels)

"""The fixed-point bus: every stem of a mix on one grid of int32 samples.

Integer addition is associative and commutative, so a mix does not depend on who adds up which
stems in which order, nor on the size of blocks and windows. A stem at unity gain has headroom of
8 times full scale, a louder one as much more as it is louder; with stems of weight w in all, the
grid has ``28 - ceil(log2(w))`` fractional bits, so that all of them together fit:
``w * 8 * 2**bits <= 2**31``. 16-bit samples at unity gain are on the grid as they are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waveflow_ray.audio.clip import Clip
from waveflow_ray.audio.decode import Block

Window = NDArray[np.int32]

HEADROOM = 8
"""Times full scale, in each stem at unity gain. Float samples beyond are clipped."""
WINDOW_FRAMES = 1 << 19
"""Length of the pieces in which sums are handed on: 4 MiB in stereo, 12 s at 44.1 kHz."""
INT16_BITS = 15
MAX_WEIGHT = 1 << (28 - INT16_BITS)

SURROUND_GAIN = 0.5**0.5
_FIVE_ONE = {
    # Front left, front right, centre, low frequency effects, left and right surround.
    "wav": ((0, 2, 4), (1, 2, 5)),
    # Vorbis I, section 4.3.9: left, centre, right, left and right surround, low frequencies.
    "ogg": ((0, 1, 3), (2, 1, 4)),
}


@dataclass(frozen=True)
class MixFormat:
    """What all parts of one mix agree on.

    Attributes:
        sample_rate: in Hz.
        channels: 1 or 2.
        bits: fractional bits of the bus: 1.0 is ``2**bits``.
        window_frames: length of the pieces in which sums are handed on.
    """

    sample_rate: int
    channels: int
    bits: int
    window_frames: int


def fraction_bits(weight: float) -> int:
    """Fractional bits of a bus for stems of that weight (`Clip.weight`) in all, 15 to 28.

    Raises:
        ValueError: for less than one stem, or more than 8,192, which 16 bits of each would
            not fit.
    """
    if not 1 <= weight <= MAX_WEIGHT:
        raise ValueError(f"the stems of a mix weigh 1 to {MAX_WEIGHT}, not {weight:g}")
    mantissa, exponent = math.frexp(weight)
    return 28 - (exponent - 1 if mantissa == 0.5 else exponent)


def to_stereo(block: Block, container: str) -> Block:
    """At most two channels. 5.1 becomes stereo by ITU-R BS.775 (centre and surrounds at -3 dB, no
    low frequency effects), other layouts by averaging the odd channels into the left and the
    even ones into the right; both so that full scale is not exceeded.

    No matrix product: its rounding would depend on the block size.

    Args:
        container: as `AudioReader.container`; Vorbis has its channels in another order.
    """
    channels = block.shape[1]
    if channels <= 2:
        return block
    samples = as_float(block)
    sides: Sequence[Sequence[int]]
    gains: Sequence[float]
    stereo = np.zeros((len(block), 2), np.float32)
    if channels == 6:
        sides = _FIVE_ONE["ogg" if container == "OGG" else "wav"]
        gains = (1.0, SURROUND_GAIN, SURROUND_GAIN)
    else:
        sides = (tuple(range(0, channels, 2)), tuple(range(1, channels, 2)))
        gains = (1.0,) * channels
    for side, sources in enumerate(sides):
        weights = gains[: len(sources)]
        for source, weight in zip(sources, weights, strict=True):
            stereo[:, side] += samples[:, source] * np.float32(weight / sum(weights))
    return stereo


def as_float(block: Block) -> NDArray[np.float32]:
    """Samples as float32, full scale 1.0."""
    if block.dtype == np.int16:
        return np.multiply(block, np.float32(2.0**-INT16_BITS), dtype=np.float32)
    return block.astype(np.float32, copy=False)


def add_to_bus(
    total: Window, block: Block, clip: Clip, bits: int, envelope: NDArray[np.float32] | None
) -> None:
    """Add a stem's samples to a stretch of the bus, with its gains.

    A mono stem is the same in both channels of a stereo mix; a mono mix has the average of both
    channels of a stereo one.

    Args:
        total: int32 ``(n, 1 or 2)``; changed.
        block: ``(n, 1 or 2)``, at the mix's rate.
        envelope: gain of the fades, ``(n,)``.
    """
    channels = total.shape[1]
    if block.dtype == np.int16 and clip.is_unity and block.shape[1] <= channels:
        total += np.left_shift(block, bits - INT16_BITS, dtype=np.int32)
        return
    samples = as_float(block)
    left, right = samples[:, 0], samples[:, -1]
    if channels == 2:
        total[:, 0] += _quantised(left, clip.left, clip.weight, bits, envelope)
        total[:, 1] += _quantised(right, clip.right, clip.weight, bits, envelope)
    elif samples.shape[1] == 1:
        gain = (clip.left + clip.right) / 2
        total[:, 0] += _quantised(left, gain, clip.weight, bits, envelope)
    else:
        # Halves, so that their sum has the headroom of one stem.
        for side, gain in ((left, clip.left), (right, clip.right)):
            total[:, 0] += _quantised(side, gain / 2, clip.weight / 2, bits, envelope)


def _quantised(
    samples: NDArray[np.float32],
    gain: float,
    weight: float,
    bits: int,
    envelope: NDArray[np.float32] | None,
) -> NDArray[np.int32]:
    # Scaling by a power of two is exact, so at unity gain nothing is rounded before rint.
    scaled = np.multiply(samples, np.float32(gain * 2.0**bits), dtype=np.float32)
    if envelope is not None:
        scaled *= envelope
    # The largest float32 below the headroom fits int32.
    limit = np.nextafter(np.float32(HEADROOM * weight * 2.0**bits), np.float32(0))
    np.clip(scaled, -limit, limit, out=scaled)
    return np.rint(scaled, out=scaled).astype(np.int32)


class MixBus:
    """Adds up windows, in whatever order they come, in a file.

    Args:
        fd: of an empty file for reading and writing; stays open. Nothing else may write to it.
        fmt: of the mix, the same that the windows were made for.
    """

    def __init__(self, fd: int, fmt: MixFormat) -> None:
        self._fd = fd
        self._format = fmt
        self._frame_bytes = 4 * fmt.channels
        self._written: set[int] = set()
        self.frames = 0
        """Length so far: the end of the furthest window."""

    def add(self, index: int, window: Window) -> None:
        """Add a window to the bus.

        Args:
            index: counts from 0, in windows of ``fmt.window_frames``.
            window: int32 ``(n, fmt.channels)``, n up to ``fmt.window_frames``. Not changed.

        Raises:
            ValueError: the window does not belong to this format.
            OSError: the file system is full.
        """
        length, channels = window.shape
        fmt = self._format
        if length > fmt.window_frames or channels != fmt.channels or window.dtype != np.int32:
            raise ValueError(f"window {window.dtype}{window.shape} does not fit {fmt}")
        start = index * fmt.window_frames
        if index in self._written:
            window = self.read(start, length) + window
        self._written.add(index)
        _write_all(self._fd, np.ascontiguousarray(window), start * self._frame_bytes)
        self.frames = max(self.frames, start + length)

    def read(self, start: int, frames: int) -> Window:
        """Frames of the bus as they are; zeros where nothing was added yet."""
        samples = np.zeros((max(0, frames), self._format.channels), np.int32)
        view, offset = samples.data.cast("B") if samples.size else memoryview(b""), 0
        while offset < len(view):
            count = os.preadv(self._fd, [view[offset:]], start * self._frame_bytes + offset)
            if count == 0:
                break
            offset += count
        return samples


def _write_all(fd: int, samples: NDArray[Any], offset: int) -> None:
    view = samples.data.cast("B") if samples.size else memoryview(b"")
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count

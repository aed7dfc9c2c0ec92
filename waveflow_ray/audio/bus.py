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
from waveflow_ray.audio.kernels import add_scaled, add_shifted
from waveflow_ray.audio.samples import Block

Window = NDArray[np.int32]

HEADROOM = 8
"""Times full scale, in each stem at unity gain. Float samples beyond are clipped."""
WINDOW_FRAMES = 1 << 19
"""Length of the pieces in which sums are handed on: 4 MiB in stereo, 12 s at 44.1 kHz."""
INT16_BITS = 15
HELD_BYTES = 96 * 2**20
"""Of windows that need not be written: more than four minutes of stereo."""
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
        total: int32 ``(n, 1 or 2)``, contiguous; changed.
        block: ``(n, 1 or 2)``, at the mix's rate.
        envelope: gain of the fades, ``(n,)``.
    """
    channels = total.shape[1]
    if block.dtype == np.int16 and clip.is_unity and block.shape[1] <= channels:
        if block.shape[1] == channels:
            # Frame by frame in memory, so channels need no loop of their own.
            add_shifted(total.reshape(-1), block.reshape(-1), bits - INT16_BITS)
        else:
            total += np.left_shift(block, bits - INT16_BITS, dtype=np.int32)
        return
    # 16-bit samples are scaled as they are: a power of two more or less changes no digit.
    full = bits - INT16_BITS if block.dtype == np.int16 else bits

    def add(column: int, samples: NDArray[Any], gain: float, weight: float) -> None:
        # The largest float32 below the headroom fits int32.
        limit = np.nextafter(np.float32(HEADROOM * weight * 2.0**bits), np.float32(0))
        add_scaled(total, column, samples, np.float32(gain * 2.0**full), limit, fades)

    fades = np.empty(0, np.float32) if envelope is None else envelope
    left, right = block[:, 0], block[:, -1]
    if channels == 2:
        add(0, left, clip.left, clip.weight)
        add(1, right, clip.right, clip.weight)
    elif block.shape[1] == 1:
        add(0, left, (clip.left + clip.right) / 2, clip.weight)
    else:
        # Halves, so that their sum has the headroom of one stem.
        add(0, left, clip.left / 2, clip.weight / 2)
        add(0, right, clip.right / 2, clip.weight / 2)


class MixBus:
    """Adds up windows, in whatever order they come.

    As many as fit `HELD_BYTES` are kept as they came, which on Ray means in the object store,
    without a copy; the others are in a file.

    Args:
        fd: of an empty file for reading and writing; stays open. Nothing else may write to it.
        fmt: of the mix, the same that the windows were made for.
    """

    def __init__(self, fd: int, fmt: MixFormat) -> None:
        self._fd = fd
        self._format = fmt
        self._window_bytes = 4 * fmt.channels * fmt.window_frames
        self._held: dict[int, Window] = {}
        self._lengths: dict[int, int] = {}
        self.frames = 0
        """Length so far: the end of the furthest window."""

    def add(self, index: int, window: Window) -> None:
        """Add a window to the bus.

        Args:
            index: counts from 0, in windows of ``fmt.window_frames``.
            window: int32 ``(n, fmt.channels)``, n up to ``fmt.window_frames``. Not changed, and
                not to be changed afterwards.

        Raises:
            ValueError: the window does not belong to this format.
            OSError: the file system is full.
        """
        length, channels = window.shape
        fmt = self._format
        if length > fmt.window_frames or channels != fmt.channels or window.dtype != np.int32:
            raise ValueError(f"window {window.dtype}{window.shape} does not fit {fmt}")
        known = self._lengths.get(index)
        if known is not None:
            total = self._window(index, max(known, length)).copy()
            total[:length] += window
            window = total
        self._lengths[index] = len(window)
        self.frames = max(self.frames, index * fmt.window_frames + len(window))
        if index in self._held or (len(self._held) + 1) * self._window_bytes <= HELD_BYTES:
            self._held[index] = window
        else:
            _write_all(self._fd, np.ascontiguousarray(window), index * self._window_bytes)

    def window(self, index: int) -> Window:
        """The sum in a window, up to the end of the bus; zeros where nothing was added."""
        size = self._format.window_frames
        return self._window(index, max(0, min(size, self.frames - index * size)))

    def _window(self, index: int, frames: int) -> Window:
        """The first `frames` of a window; not to be changed."""
        held = self._held.get(index)
        if held is not None and len(held) >= frames:
            return held[:frames]
        samples = np.zeros((frames, self._format.channels), np.int32)
        if held is not None:
            samples[: len(held)] = held
        elif samples.size:
            _read_all(self._fd, samples, index * self._window_bytes)
        return samples


def _read_all(fd: int, samples: NDArray[Any], offset: int) -> None:
    """Fill `samples` from a file; what is behind its end is left as it is."""
    view = samples.data.cast("B")
    while view and (count := os.preadv(fd, [view], offset)):
        view, offset = view[count:], offset + count


def _write_all(fd: int, samples: NDArray[Any], offset: int) -> None:
    view = samples.data.cast("B") if samples.size else memoryview(b"")
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count

"""The waveform that the browser draws: one peak per bucket of frames.

Channels are averaged to mono, then absolute; ``num_peaks`` buckets of
``floor(frames / num_peaks)`` frames each, the remainder dropped; the maximum of each, divided by
the largest, rounded to 4 decimals. With fewer frames than peaks: the samples themselves, then
zeros. Silence is zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waveflow_ray.audio.decode import AudioReader
from waveflow_ray.audio.pcm import STRETCH
from waveflow_ray.audio.samples import Block

DECIMALS = 4
FULL_SCALE_INT16 = 32768

Mono = NDArray[np.int32] | NDArray[np.float32]


@dataclass(frozen=True)
class Waveform:
    """The waveform of a file and what was learned while reading it.

    Attributes:
        peaks: `num_peaks` values from 0 to 1, relative to the largest.
        duration: in seconds, of the frames that were there.
        sample_rate: in Hz.
        truncated: the file breaks off; this is the waveform of what there is.
        peak: the largest, before division; full scale is 1.0.
    """

    peaks: list[float]
    duration: float
    sample_rate: int
    num_peaks: int
    channels: int
    frames: int
    truncated: bool
    peak: float


class PeakMeter:
    """Peaks of audio of a known length that comes in blocks. Block sizes do not matter.

    Args:
        frames: how many will come; more are ignored beyond the last bucket, missing ones
            are silence.
        num_peaks: how many buckets, at least 1.
    """

    def __init__(self, frames: int, num_peaks: int) -> None:
        self.bucket_frames = bucket_frames(frames, num_peaks)
        self._peaks = np.zeros(num_peaks, np.float64)
        self._at = 0
        self._end = self.bucket_frames * num_peaks
        self._work: dict[str, NDArray[Any]] = {}

    def add(self, block: Block) -> None:
        """Take in the next frames: int16 (full scale 32768) or float32 (full scale 1.0),
        ``(n, channels)``."""
        block = block[: self._end - self._at]
        if len(block):
            full_scale = FULL_SCALE_INT16 if block.dtype == np.int16 else 1.0
            self._take(self._magnitude(block), 1.0 / (full_scale * block.shape[1]))

    def add_24_bits(self, data: memoryview, channels: int) -> None:
        """Take in the next frames as they are in a WAV file of 24 bits: the same peaks as those of
        float32, in half the time.

        Args:
            data: whole frames.
            channels: 1 or 2.
        """
        size = 3 * channels
        data = data[: (self._end - self._at) * size]
        for start in range(0, len(data), STRETCH * size):
            mono = self._magnitude_24(data[start : start + STRETCH * size], channels)
            self._take(mono, 1.0 / (2**23 * channels))

    def _take(self, mono: Mono, scale: float) -> None:
        size, at = self.bucket_frames, self._at
        self._at += len(mono)
        # The first part completes the bucket that the last block left open.
        first = min(-at % size, len(mono))
        if first:
            self._raise_to(at // size, mono[:first], scale)
        whole, rest = divmod(len(mono) - first, size)
        if whole:
            start = (at + first) // size
            body = mono[first : first + whole * size].reshape(whole, size)
            self._peaks[start : start + whole] = _scaled(body.max(axis=1), scale)
        if rest:
            self._raise_to((self._at - 1) // size, mono[-rest:], scale)

    def result(self) -> NDArray[np.float64]:
        """The bucket maxima as they are, float64 ``(num_peaks,)``; full scale is 1.0."""
        return self._peaks.copy()

    def _raise_to(self, bucket: int, mono: Mono, scale: float) -> None:
        self._peaks[bucket] = max(self._peaks[bucket], float(_scaled(mono.max(), scale)))

    def _magnitude(self, block: Block) -> Mono:
        """Absolute sum of the channels, in a buffer that is used again: int32 or float32."""
        count, channels = block.shape
        total: Mono
        if block.dtype == np.int16:
            total = self._buffer("sum", np.int32, count)
            if channels == 2 and block.flags.c_contiguous:
                # A frame read as one 32-bit number and taken apart by shifts: half the time
                # of adding two columns, which numpy widens one by one.
                frame = block.view(np.int32)[:, 0]
                other = self._buffer("other", np.int32, count)
                np.left_shift(frame, 16, out=total)
                np.right_shift(total, 16, out=total)
                np.right_shift(frame, 16, out=other)
                np.add(total, other, out=total)
                return np.absolute(total, out=total)
        else:
            total = self._buffer("sum", np.float32, count)
        if channels == 1:
            return np.absolute(block[:, 0], out=total, dtype=total.dtype)
        np.add(block[:, 0], block[:, 1], out=total, dtype=total.dtype)
        for channel in range(2, channels):
            np.add(total, block[:, channel], out=total)
        return np.absolute(total, out=total)

    def _magnitude_24(self, frames: memoryview, channels: int) -> Mono:
        """As `_magnitude`, of samples of 24 bits."""
        size = 3 * channels
        count = len(frames) // size
        total, other = self._buffer("sum", np.int32, count), self._buffer("other", np.int32, count)
        for channel, out in zip(range(channels), (total, other), strict=False):
            # A sample is the upper three of four bytes. Of the first frame one would lie before it.
            first = frames[3 * channel : 3 * channel + 3]
            out[0] = int.from_bytes(first, "little", signed=True)
            if count > 1:
                four = np.ndarray(count - 1, "<i4", frames, size + 3 * channel - 1, (size,))
                np.right_shift(four, 8, out=out[1:])
        if channels == 2:
            np.add(total, other, out=total)
        np.absolute(total, out=total)
        return total

    def _buffer(self, name: str, dtype: type[np.generic], count: int) -> NDArray[Any]:
        buffer = self._work.get(name)
        if buffer is None or len(buffer) < count or buffer.dtype != dtype:
            buffer = self._work[name] = np.empty(count, dtype)
        return buffer[:count]


def _scaled(peaks: Any, scale: float) -> NDArray[np.float64]:
    """Maxima of a bucket in float64, as a product in float32 would depend on the block size.

    They are float32 before: so many digits the sum of two samples of float32 has as well.
    """
    scaled: NDArray[np.float64] = peaks.astype(np.float32).astype(np.float64) * scale
    return scaled


def bucket_frames(frames: int, num_peaks: int) -> int:
    """Frames in one bucket; 1 when there are fewer frames than peaks."""
    if num_peaks < 1:
        raise ValueError(f"num_peaks must be 1 or more, not {num_peaks}")
    return max(1, frames // num_peaks)


def normalise(peaks: NDArray[np.float64]) -> list[float]:
    """Peaks divided by the largest and rounded to 4 decimals; all 0 for silence."""
    largest = float(peaks.max(initial=0.0))
    if largest == 0.0:
        return [0.0] * len(peaks)
    values: list[float] = np.round(peaks / largest, DECIMALS).tolist()
    return values


def waveform_of(reader: AudioReader, num_peaks: int) -> Waveform:
    """The waveform of an open file, in one pass where its header is right about its length.

    Args:
        reader: at its start.
        num_peaks: how many peaks, 1 or more.

    Raises:
        JobError: as `AudioReader.blocks`.
    """
    meter = _metered(reader, reader.claimed_frames, num_peaks)
    frames, truncated = reader.frames_read, reader.truncated
    if bucket_frames(frames, num_peaks) != meter.bucket_frames:
        reader.rewind()
        meter = _metered(reader, frames, num_peaks)
    return waveform(meter, reader.sample_rate, reader.channels, frames, truncated=truncated)


def waveform(
    meter: PeakMeter, sample_rate: int, channels: int, frames: int, *, truncated: bool = False
) -> Waveform:
    """The waveform of what a meter has taken in: `frames` frames at `sample_rate` Hz."""
    peaks = meter.result()
    return Waveform(
        peaks=normalise(peaks),
        duration=frames / sample_rate,
        sample_rate=sample_rate,
        num_peaks=len(peaks),
        channels=channels,
        frames=frames,
        truncated=truncated,
        peak=float(peaks.max()),
    )


def _metered(reader: AudioReader, frames: int, num_peaks: int) -> PeakMeter:
    meter = PeakMeter(frames, num_peaks)
    for block in reader.blocks():
        meter.add(block)
    return meter

"""Inner loops of a mix, compiled: one pass over memory each, whatever the number of steps.

Importing this takes numba's 0.6 s and 65 MB, so only what mixes does. The first call of a
function compiles it, unless an earlier process has left the result in numba's cache, as
`waveflow_ray.audio.warm` does when an image is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`numba.njit`, cached on disk, without the GIL; typed as the function itself."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # no folder for the cache can be written: every process compiles anew
        return cast(F, numba.njit(nogil=True)(function))


@compiled
def pcm24_to_float(data: Any, out: Any, big_endian: bool) -> None:
    """24-bit integers, as bytes, to float32 of full scale 1.0; exact.

    Args:
        data: uint8 ``(3 * n,)``.
        out: float32 ``(n,)``.
    """
    first, last = (0, 2) if big_endian else (2, 0)
    for i in range(len(out)):
        at = 3 * i
        value = (data[at + first] << 16) | (data[at + 1] << 8) | data[at + last]
        if value >= 1 << 23:
            value -= 1 << 24
        out[i] = value * 2.0**-23


@compiled
def _flushed(value: float) -> float:
    return 0.0 if abs(value) < 1e-60 else value


@compiled
def k_weighted_energy(
    samples: Any, scale: float, taps: Any, state: Any, hop: int, carry: Any, out: Any
) -> int:
    """Energy of K-weighted samples, by stretches of `hop` frames.

    Args:
        samples: int32 ``(n, 1 or 2)``.
        scale: makes full scale 1.0 of a sample.
        taps: float64 ``(7,)``: b0, b1, b2, a1, a2 of the shelf, a1, a2 of the high-pass.
        state: float64 ``(2, 4)``: of both filters of each channel; changed.
        carry: float64 ``(3,)``: frames in the stretch that is open, and the energy of each
            channel; changed.
        out: float64: the mean square of every stretch that was completed.

    Returns:
        how many were completed.
    """
    b0, b1, b2, a1, a2, c1, c2 = taps
    frames, last = samples.shape[0], samples.shape[1] - 1
    filled, left, right, done = int(carry[0]), carry[1], carry[2], 0
    p0, p1, u0, u1 = state[0]
    q0, q1, v0, v1 = state[1]
    at = 0
    while at < frames:
        count = min(hop - filled, frames - at)
        # Both channels in one loop: each waits for its own last sample, not for the other's. And
        # what waits for nothing comes first in each sum.
        part = samples[at : at + count]
        for i in range(count):
            x = part[i, 0] * scale
            y = b0 * x + p0
            p0 = (b1 * x + p1) - a1 * y
            p1 = b2 * x - a2 * y
            z = y + u0
            u0 = (u1 - 2.0 * y) - c1 * z
            u1 = y - c2 * z
            left += z * z
            x = part[i, last] * scale
            y = b0 * x + q0
            q0 = (b1 * x + q1) - a1 * y
            q1 = b2 * x - a2 * y
            z = y + v0
            v0 = (v1 - 2.0 * y) - c1 * z
            v1 = y - c2 * z
            right += z * z
        at += count
        filled += count
        if filled == hop:
            out[done] = (left + right if last else left) / hop
            done += 1
            filled, left, right = 0, 0.0, 0.0
            # Numbers too small for the processor's fast path would follow in silence.
            p0, p1, u0, u1 = _flushed(p0), _flushed(p1), _flushed(u0), _flushed(u1)
            q0, q1, v0, v1 = _flushed(q0), _flushed(q1), _flushed(v0), _flushed(v1)
    state[0] = p0, p1, u0, u1
    state[1] = q0, q1, v0, v1
    carry[0], carry[1], carry[2] = filled, left, right
    return done


@compiled
def peaks_of(
    samples: Any, channels: int, phases: Any, bound: float, best: float
) -> tuple[float, float]:
    """The largest magnitude of the samples, and the largest of them and between them.

    Args:
        samples: int32, frame by frame; the first ``taps - 1`` frames are the last of the call
            before.
        phases: float64 ``(phases, taps)``: interpolators; the samples themselves are no phase.
        bound: largest sum of the absolute taps of a phase: nothing between samples is larger
            than so many times the samples around it.
        best: what is known of the second result; where no more is possible, nothing is
            interpolated.
    """
    stretch = 32
    taps = phases.shape[1]
    start = (taps - 1) * channels
    before, highest = 0.0, 0.0
    sums = np.empty(stretch * channels)
    for i in range(start):
        before = max(before, abs(float(samples[i])))
    while start < len(samples):
        stop = min(start + stretch * channels, len(samples))
        low = high = 0
        part = samples[start:stop]
        for i in range(len(part)):
            low = min(low, part[i])
            high = max(high, part[i])
        largest = max(float(high), -float(low))
        highest = max(highest, largest)
        best = max(best, largest)
        # The taps reach back less than a stretch.
        if max(before, largest) * bound > best:
            for phase in range(phases.shape[0]):
                sums[:] = 0.0
                for k in range(taps):
                    tap = phases[phase, k]
                    part = samples[start - k * channels : stop - k * channels]
                    for i in range(len(part)):
                        sums[i] += tap * part[i]
                for i in range(len(sums)):
                    best = max(best, abs(sums[i]))
        before = largest
        start = stop
    return highest, best


@compiled
def quantise(
    samples: Any,
    factor: float,
    low: float,
    high: float,
    rounds: bool,
    noise: Any,
    out: Any,
    waveform: Any,
    at: int,
) -> tuple[float, float, int]:
    """Samples of the bus as those of a file, and their waveform.

    Args:
        samples: int32 ``(n, channels)``.
        factor: makes the file's steps of a sample, or full scale 1.0 for float files.
        low, high: smallest and largest value of the file; what is beyond is clipped.
        rounds: to the nearest step, half to even.
        noise: float32 ``(n, channels)``, in steps, added before rounding; or ``(0, 0)``.
        out: ``(n, channels)``, the samples of the file.
        waveform: float64: the largest magnitude of the sum of the channels in each of its
            buckets so far; changed. The first item is the number of frames in a bucket.
        at: number of the first frame.

    Returns:
        the largest magnitude before clipping and after, and the number of samples clipped.
    """
    size = int(waveform[0])
    bucket, filled = 1 + at // size, at % size
    top, wanted, clipped = 0.0, 0.0, 0
    frames, channels = samples.shape
    highest = waveform[bucket] if bucket < len(waveform) else 0.0
    for i in range(frames):
        mono = 0.0
        for channel in range(channels):
            value = samples[i, channel] * factor
            wanted = max(wanted, abs(value))
            if len(noise):
                value += noise[i, channel]
            if rounds:
                value = np.rint(value)
            if value > high or value < low:
                value = high if value > high else low
                clipped += 1
            out[i, channel] = value
            top = max(top, abs(value))
            mono += value
        highest = max(highest, abs(mono))
        filled += 1
        if filled == size:
            if bucket < len(waveform):
                waveform[bucket] = highest
            bucket += 1
            filled, highest = 0, 0.0
    if filled and bucket < len(waveform):
        waveform[bucket] = highest
    return wanted, top, clipped


@compiled
def add_shifted(total: Any, samples: Any, shift: int) -> None:
    """Add 16-bit samples to a stretch of the bus: ``total += samples << shift``.

    Args:
        total: int32 ``(n,)``; changed.
        samples: int16 ``(n,)``.
    """
    for i in range(len(total)):
        total[i] += np.int32(samples[i]) << shift


@compiled
def add_scaled(
    total: Any, column: int, samples: Any, scale: Any, limit: Any, envelope: Any
) -> None:
    """Add samples to one channel of a stretch of the bus: scaled, clipped, rounded half to even.

    Args:
        total: int32 ``(n, channels)``; changed.
        samples: int16 or float32 ``(n,)``.
        scale, limit: float32: steps of the bus in 1 of a sample; largest magnitude in steps.
        envelope: float32 ``(n,)``, multiplied as well; or ``(0,)``.
    """
    fades = len(envelope) > 0
    for i in range(samples.shape[0]):
        value = np.float32(samples[i]) * scale
        if fades:
            value *= envelope[i]
        value = min(max(value, -limit), limit)
        total[i, column] += np.int32(np.rint(value))

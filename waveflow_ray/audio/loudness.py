"""Loudness and true peak of a mix, by ITU-R BS.1770-4 and EBU R 128.

The integrated loudness is the mean energy of K-weighted blocks of 400 ms, overlapping by 75 %,
without those below -70 LUFS and those more than 10 LU below the mean of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waveflow_ray.audio.kernels import k_weighted_energy, peaks_of

HOPS_PER_BLOCK = 4
ABSOLUTE_GATE_LUFS = -70.0
RELATIVE_GATE = 0.1  # -10 LU
OFFSET_LU = -0.691
TAPS_PER_PHASE = 24
"""Of the interpolator. libebur128 has 12 below 96 kHz: of white noise they miss 1 dB of what is
between the samples and ffmpeg finds, which resamples; of music they miss nothing."""


@dataclass(frozen=True)
class Loudness:
    """Attributes:
    sample_peak, true_peak: linear, full scale 1.0.
    energies: mean square of the K-weighted samples, summed over channels, of every 100 ms.
    """

    sample_peak: float
    true_peak: float
    energies: NDArray[np.float64]

    def integrated_lufs(self, gain: float = 1.0) -> float | None:
        """Integrated loudness of the audio times `gain` (linear); None below the gates, or where
        there is no block of 400 ms."""
        count = len(self.energies) - HOPS_PER_BLOCK + 1
        if count < 1:
            return None
        sums = sum(self.energies[i : i + count] for i in range(HOPS_PER_BLOCK))
        blocks = np.asarray(sums) * (gain * gain / HOPS_PER_BLOCK)
        blocks = blocks[blocks > 10.0 ** ((ABSOLUTE_GATE_LUFS - OFFSET_LU) / 10.0)]
        if not len(blocks):
            return None
        loud = blocks[blocks > blocks.mean() * RELATIVE_GATE]
        return OFFSET_LU + 10.0 * math.log10(float(loud.mean()))


class LoudnessMeter:
    """Measures audio that comes in blocks. Block sizes do not matter.

    Args:
        sample_rate: in Hz.
        channels: 1 or 2, of weight 1; mono is one channel, not two alike.
        full_scale: the sample that stands for 1.0.
    """

    def __init__(self, sample_rate: int, channels: int, full_scale: float) -> None:
        self._scale = 1.0 / full_scale
        self._hop = (sample_rate + 5) // 10
        self._taps = _k_weighting(sample_rate)
        self._state = np.zeros((2, 4))
        self._carry = np.zeros(3)
        self._energies: list[NDArray[np.float64]] = []
        self._phases = _interpolator(sample_rate)
        self._bound = float(np.abs(self._phases).sum(axis=1).max(initial=0.0))
        self._tail = np.zeros((self._phases.shape[1] - 1, channels), np.int32)
        self._sample_peak = self._true_peak = 0.0

    def add(self, block: NDArray[np.int32]) -> None:
        """Take in the next frames, int32 ``(n, channels)``; not changed."""
        if not len(block):
            return
        out = np.empty(len(block) // self._hop + 1)
        count = k_weighted_energy(
            block, self._scale, self._taps, self._state, self._hop, self._carry, out
        )
        self._energies.append(out[:count])
        self._find_peaks(block)

    def result(self) -> Loudness:
        """What was measured. Nothing can be added afterwards."""
        # What is between the last samples and the silence behind them.
        self._find_peaks(np.zeros_like(self._tail))
        return Loudness(
            sample_peak=self._sample_peak * self._scale,
            true_peak=self._true_peak * self._scale,
            energies=np.concatenate([*self._energies, np.empty(0)]),
        )

    def _find_peaks(self, block: NDArray[np.int32]) -> None:
        samples = np.concatenate([self._tail, block])
        highest, self._true_peak = peaks_of(
            samples.reshape(-1), samples.shape[1], self._phases, self._bound, self._true_peak
        )
        self._sample_peak = max(self._sample_peak, highest)
        self._tail = samples[len(samples) - len(self._tail) :].copy()


def _k_weighting(sample_rate: int) -> NDArray[np.float64]:
    """The two filters of BS.1770-4, annex 1, for any rate.

    The recommendation has coefficients for 48 kHz only. The analogue prototypes behind them, by
    which libebur128 and others compute those of other rates, are a high shelf (f0 1682 Hz, gain 4
    dB, Q 0.7072) and a high-pass (f0 38.1 Hz, Q 0.5003), by the bilinear transform.
    """
    k = math.tan(math.pi * 1681.974450955533 / sample_rate)
    q = 0.7071752369554196
    high = 10.0 ** (3.999843853973347 / 20.0)
    middle = high**0.4996667741545416
    a0 = 1.0 + k / q + k * k
    shelf = (
        (high + middle * k / q + k * k) / a0,
        2.0 * (k * k - high) / a0,
        (high - middle * k / q + k * k) / a0,
        2.0 * (k * k - 1.0) / a0,
        (1.0 - k / q + k * k) / a0,
    )
    k = math.tan(math.pi * 38.13547087602444 / sample_rate)
    q = 0.5003270373238773
    a0 = 1.0 + k / q + k * k
    return np.array([*shelf, 2.0 * (k * k - 1.0) / a0, (1.0 - k / q + k * k) / a0])


def _interpolator(sample_rate: int) -> NDArray[np.float64]:
    """Phases between samples, ``(phases, taps)``: a sinc in a Hann window, at four times the rate
    below 96 kHz, at twice below 192 kHz."""
    factor = 4 if sample_rate < 96_000 else 2 if sample_rate < 192_000 else 1
    length = TAPS_PER_PHASE * factor + 1
    at = np.arange(length) - (length - 1) / 2
    taps = np.sinc(at / factor) * np.hanning(length)
    padded = np.zeros((TAPS_PER_PHASE + 1) * factor)
    padded[:length] = taps
    phases = padded.reshape(-1, factor).T
    # One of them is the samples themselves.
    between = [i for i in range(factor) if (i - (length - 1) // 2) % factor]
    return np.ascontiguousarray(phases[between])

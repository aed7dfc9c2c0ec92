"""A stem on the time line of a mix: its part, its place and its gains, in frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waveflow_ray.audio.spec import StemSpec


@dataclass(frozen=True)
class Clip:
    """Attributes:
    left, right: linear gains of the two channels.
    start, stop: the part of the stem, in frames of its own rate; None is its end.
    offset: the frame of the mix at which the part begins; may be negative.
    fade_in, fade_out: in frames of the mix.
    length: of the part in frames of the mix, where it is known before decoding.
    """

    left: float = 1.0
    right: float = 1.0
    start: int = 0
    stop: int | None = None
    offset: int = 0
    fade_in: int = 0
    fade_out: int = 0
    length: int | None = None

    @property
    def weight(self) -> float:
        """How much of the bus it may take, in stems at unity gain; 1 or more."""
        return max(1.0, self.left, self.right)

    @property
    def is_unity(self) -> bool:
        """Its samples go into the mix as they are."""
        return self.left == self.right == 1.0 and not self.fade_in and not self.fade_out

    def envelope(self, first: int, count: int, length: int | None) -> NDArray[np.float32] | None:
        """Gain of the fades for frames of the part, from `first` on; None where it is 1.

        Args:
            length: of the part in frames of the mix; only a fade-out needs it.
        """
        rises = first < self.fade_in
        fall = None if not self.fade_out or length is None else length - self.fade_out
        falls = fall is not None and first + count > fall
        if not rises and not falls:
            return None
        at = np.arange(first, first + count, dtype=np.float64)
        gain = np.ones(count)
        if rises:
            gain = np.minimum(gain, at / self.fade_in)
        if falls and length is not None:
            gain *= np.clip((length - at) / self.fade_out, 0.0, 1.0)
        return gain.astype(np.float32)


def clip_of(stem: StemSpec, stem_rate: int, stem_frames: int | None, mix_rate: int) -> Clip:
    """Seconds and decibels of a stem as frames and factors.

    The pan is constant power: cosine and sine of an angle, at 0 dB in the centre, so +3 dB when
    all is at one side.

    Args:
        stem_frames: length of the stem, where it is known before decoding.
    """
    gain = 10.0 ** (stem.gain_db / 20.0)
    left = right = gain
    if stem.pan:
        angle = (stem.pan + 1.0) * math.pi / 4.0
        left, right = (gain * math.sqrt(2.0) * turn(angle) for turn in (math.cos, math.sin))
    start = round(stem.start_s * stem_rate)
    stop = None if stem.end_s is None else round(stem.end_s * stem_rate)
    length = None
    if stem_frames is not None:
        stop = stem_frames if stop is None else min(stop, stem_frames)
        length = resampled_length(max(0, stop - start), stem_rate, mix_rate)
    return Clip(
        left=max(left, 0.0),
        right=max(right, 0.0),
        start=start,
        stop=stop,
        offset=round(stem.offset_s * mix_rate),
        fade_in=round(stem.fade_in_s * mix_rate),
        fade_out=round(stem.fade_out_s * mix_rate),
        length=length,
    )


def resampled_length(frames: int, from_rate: int, to_rate: int) -> int:
    """Frames that are left of so many after resampling, as soxr rounds them."""
    return (2 * frames * to_rate + from_rate) // (2 * from_rate)

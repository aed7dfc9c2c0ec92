"""How loud a mix becomes: the gain for the sum of its stems."""

from __future__ import annotations

import math
from dataclasses import dataclass

from waveflow_ray.audio.loudness import Loudness
from waveflow_ray.audio.spec import MixSpec

AVERAGE_LIMIT = 0.95
AVERAGE_LIMIT_INT16 = 31129
"""The largest 16-bit sample that is not above 0.95 of full scale: 0.95 * 32768 = 31129.6."""
TARGET_PEAK_DBFS = -1.0
TARGET_LUFS = -14.0
TRUE_PEAK_DBTP = -1.0
CLOSE_LU = 1e-6


@dataclass(frozen=True)
class Level:
    """Attributes:
    gain: linear, for the sum of the stems.
    ceiling: largest 16-bit magnitude that rounding may reach; None is full scale.
    limited_db: how much louder it would have become, had the true peak permitted it.
    """

    gain: float
    ceiling: int | None = None
    limited_db: float = 0.0


def likely_level(spec: MixSpec, n_stems: int) -> Level | None:
    """What `level_of` will find for almost all audio, so that encoding need not wait for it.

    Returns:
        None where it depends on the audio: one stem may well be above the limit; the average of
        two or more is so only where all have a peak at the same time.
    """
    if spec.normalization == "none":
        return Level(1.0)
    if spec.normalization == "average" and n_stems > 1:
        return _average(spec, n_stems, 0.0)
    return None


def level_of(spec: MixSpec, n_stems: int, sum_: Loudness) -> Level:
    """The level of a mix.

    Args:
        n_stems: how many are heard.
        sum_: of the stems, as they add up.
    """
    match spec.normalization:
        case "average":
            return _average(spec, n_stems, sum_.sample_peak)
        case "peak":
            target = from_db(_or(spec.target_peak_dbfs, TARGET_PEAK_DBFS))
            gain = target / sum_.sample_peak if sum_.sample_peak else 1.0
            return Level(gain, math.floor(target * 32768))
        case "loudness":
            return _loudness(spec, sum_)
        case _:
            return Level(1.0)


def _average(spec: MixSpec, n_stems: int, sample_peak: float) -> Level:
    peak = sample_peak / n_stems
    if (spec.bit_depth or 16) == 16 and spec.output_format in ("wav", "flac"):
        limit = AVERAGE_LIMIT_INT16 / 32768
        ceiling: int | None = AVERAGE_LIMIT_INT16
    else:
        limit, ceiling = AVERAGE_LIMIT, None
    gain = min(1.0, limit / peak) if peak else 1.0
    return Level(gain / n_stems, ceiling)


def _loudness(spec: MixSpec, sum_: Loudness) -> Level:
    target = _or(spec.target_lufs, TARGET_LUFS)
    gain = 1.0
    # The absolute gate at -70 LUFS does not move with the gain, so one step may not be enough.
    for _ in range(20):
        lufs = sum_.integrated_lufs(gain)
        if lufs is None:
            break
        gain *= from_db(target - lufs)
        if abs(target - lufs) < CLOSE_LU:
            break
    highest = from_db(_or(spec.true_peak_dbtp, TRUE_PEAK_DBTP))
    if gain * sum_.true_peak <= highest:
        return Level(gain)
    limited = highest / sum_.true_peak
    return Level(limited, limited_db=20.0 * math.log10(gain / limited))


def from_db(decibels: float) -> float:
    """Decibels as a factor of amplitude."""
    return float(10.0 ** (decibels / 20.0))


def to_db(factor: float) -> float | None:
    """A factor of amplitude in decibels; None for 0, which JSON has no number for."""
    return 20.0 * math.log10(factor) if factor > 0 else None


def _or(value: float | None, default: float) -> float:
    return default if value is None else value

"""What the service should have computed, computed again: whole files, float64, plain numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray


def sha256_of(path: Path) -> str:
    """Lower-case hex SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def peaks_difference(path: Path, peaks: Sequence[float]) -> float:
    """Largest difference between `peaks` and those of the file; infinity if there are none."""
    if not peaks:
        return float("inf")
    samples, _ = sf.read(path, dtype="float64", always_2d=True)
    level = np.abs(samples.mean(axis=1))
    bucket = len(level) // len(peaks)
    if bucket:
        expected = level[: bucket * len(peaks)].reshape(len(peaks), bucket).max(axis=1)
    else:
        expected = np.pad(level, (0, len(peaks) - len(level)))
    largest = expected.max()
    expected = expected / largest if largest else expected
    return float(np.abs(expected - np.asarray(peaks)).max())


def mix_difference(stems: Sequence[Path], mix: Path) -> float:
    """Largest difference between the samples of `mix` and the stems mixed by the rules."""
    mixed, rate = sf.read(mix, dtype="float64", always_2d=True)
    total = np.zeros((0, 2))
    for path in stems:
        samples, stem_rate = sf.read(path, dtype="float64", always_2d=True)
        samples = _stereo(samples)
        if stem_rate != rate:
            samples = soxr.resample(samples, stem_rate, rate, quality="HQ")
        if len(samples) > len(total):
            total = np.pad(total, ((0, len(samples) - len(total)), (0, 0)))
        total[: len(samples)] += samples
    total /= len(stems)
    peak = np.abs(total).max()
    if peak > 0.95:
        total *= 0.95 / peak
    if total.shape != mixed.shape:
        return float("inf")
    return float(np.abs(total - mixed).max())


def _stereo(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.repeat(samples, 2, axis=1) if samples.shape[1] == 1 else samples

"""Files to measure with: music-like, seeded, made once and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

RATE = 44_100
PART_S = 20


def stems(
    folder: Path,
    count: int,
    seconds: int,
    container: str = "wav",
    encoding: str | None = None,
    channels: int = 2,
) -> list[Path]:
    """So many stems of a song, written where they are not there yet.

    Args:
        encoding: libsndfile's subtype; the container's own default if None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        kind = (encoding or "default").lower()
        path = folder / f"stem{number}-{seconds}s-{channels}ch-{kind}.{container}"
        if not path.exists():
            partial = path.with_suffix(".partial")
            _write(partial, number, seconds, container, encoding, channels)
            partial.rename(path)
        paths.append(path)
    return paths


def _write(
    path: Path, seed: int, seconds: int, container: str, encoding: str | None, channels: int
) -> None:
    part = _music(seed, channels)
    format_ = "RF64" if container == "wav" and seconds * RATE * channels * 4 > 2**32 else container
    with sf.SoundFile(path, "w", RATE, channels, encoding, format=format_.upper()) as file:
        for at in range(0, seconds, PART_S):
            # Every part a little different, so that nothing compresses what repeats.
            gain = 0.8 + 0.2 * np.sin(at)
            file.write((part * gain)[: (min(PART_S, seconds - at)) * RATE])


def _music(seed: int, channels: int) -> NDArray[np.float64]:
    """Notes with decays over some noise, peaks near 0.7."""
    rng = np.random.default_rng(seed)
    t = np.arange(PART_S * RATE) / RATE
    out = rng.normal(0, 0.004, (len(t), channels))
    for start in np.arange(0, PART_S, 0.5):
        pitch = 55 * 2 ** (rng.integers(0, 36) / 12)
        since = np.clip(t - start, 0, None)
        note = np.exp(-3 * since) * (t >= start)
        tone = sum(np.sin(2 * np.pi * pitch * h * t) / h for h in (1, 2, 3, 5))
        out += (note * tone)[:, None] * rng.uniform(0.3, 1.0, channels)
    return out * (0.7 / np.abs(out).max())

"""A mix: the bus in a scratch file, then scaled and written as a WAV file.

Memory is a few windows, whatever the length and number of stems.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from waveflow_ray.audio.bus import (
    MixFormat,
    Window,
    fraction_bits,
    group_windows,
    mix_format,
    stem_windows,
)
from waveflow_ray.audio.decode import BLOCK_FRAMES, open_audio
from waveflow_ray.audio.peaks import FULL_SCALE_INT16, PeakMeter, normalise
from waveflow_ray.audio.scratch import open_scratch
from waveflow_ray.audio.sndfile import UnsyncedFile

__all__ = [
    "MixBus",
    "MixFormat",
    "Mixdown",
    "fraction_bits",
    "group_windows",
    "mix_files",
    "mix_format",
    "stem_windows",
]

PEAK_LIMIT_INT16 = 31129
"""The largest 16-bit sample that is not above 0.95 of full scale: 0.95 * 32768 = 31129.6."""
NUM_PEAKS = 4000
WAV_MAX_BYTES = (1 << 32) - 4096
"""Samples beyond this need RF64; the rest of the 4 GB is for headers."""


@dataclass(frozen=True)
class Mixdown:
    """A finished mix.

    Attributes:
        duration: in seconds.
        sample_rate: in Hz.
        gain: linear, 1.0 or less, applied to the average of the stems.
        peak: the largest sample written, full scale 1.0; at most 0.95.
        peaks: waveform of the samples written, relative to its largest value.
    """

    frames: int
    duration: float
    sample_rate: int
    channels: int
    gain: float
    peak: float
    peaks: list[float]


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
        self._frames = 0
        self._window_peaks: dict[int, int] = {}

    @property
    def frames(self) -> int:
        """Length so far: the end of the furthest window."""
        return self._frames

    def add(self, window_index: int, window: Window) -> None:
        """Add a window to the bus.

        Args:
            window_index: counts from 0, in windows of ``fmt.window_frames``.
            window: int32 ``(n, fmt.channels)``, n up to ``fmt.window_frames``. Not changed.

        Raises:
            ValueError: the window does not belong to this format.
            OSError: the file system is full.
        """
        length, channels = window.shape
        fmt = self._format
        if length > fmt.window_frames or channels != fmt.channels or window.dtype != np.int32:
            raise ValueError(f"window {window.dtype}{window.shape} does not fit {fmt}")
        start = window_index * fmt.window_frames
        total = self._read(start, length)
        total += window
        _write_all(self._fd, total, start * self._frame_bytes)
        # What was added last has seen all the others, in these frames. A shorter window says
        # nothing of the frames behind it, so those are looked at as well.
        behind = self._read(start + length, min(self._frames - start, fmt.window_frames) - length)
        self._window_peaks[window_index] = max(_magnitude(total), _magnitude(behind))
        self._frames = max(self._frames, start + length)

    def peak(self) -> float:
        """Largest sample of the average of all stems so far; full scale is 1.0."""
        scale = self._format.stems << self._format.bits
        return max(self._window_peaks.values(), default=0) / scale

    def write_wav(self, file: int | str | Path, num_peaks: int = NUM_PEAKS) -> Mixdown:
        """Write the average of the stems as 16-bit WAV (RF64 above 4 GB).

        Scaled down, never up, so that no sample is above 0.95 of full scale.

        Args:
            file: a path, or the descriptor of an empty file, which stays open.

        Raises:
            OSError: the file cannot be written.
        """
        fmt = self._format
        peak = self.peak() * FULL_SCALE_INT16
        gain = min(1.0, PEAK_LIMIT_INT16 / peak) if peak else 1.0
        factor = gain * FULL_SCALE_INT16 / (fmt.stems << fmt.bits)
        meter = PeakMeter(self._frames, num_peaks)
        highest = 0
        is_long = self._frames * fmt.channels * 2 > WAV_MAX_BYTES
        try:
            with UnsyncedFile(
                file,
                "w",
                fmt.sample_rate,
                fmt.channels,
                "PCM_16",
                format="RF64" if is_long else "WAV",
                closefd=not isinstance(file, int),
            ) as out:
                for start in range(0, self._frames, BLOCK_FRAMES):
                    total = self._read(start, min(BLOCK_FRAMES, self._frames - start))
                    samples = _to_int16(total, factor)
                    out.write(samples)
                    meter.add(samples)
                    highest = max(highest, _magnitude(samples))
        except soundfile.LibsndfileError as error:
            raise OSError(f"the mix cannot be written: {error}") from error
        return Mixdown(
            frames=self._frames,
            duration=self._frames / fmt.sample_rate,
            sample_rate=fmt.sample_rate,
            channels=fmt.channels,
            gain=gain,
            peak=highest / FULL_SCALE_INT16,
            peaks=normalise(meter.result()),
        )

    def _read(self, start: int, frames: int) -> Window:
        """Frames of the bus as they are; zeros where nothing was added yet."""
        samples = np.zeros((max(0, frames), self._format.channels), np.int32)
        view, offset = samples.data.cast("B") if samples.size else memoryview(b""), 0
        while offset < len(view):
            count = os.preadv(self._fd, [view[offset:]], start * self._frame_bytes + offset)
            if count == 0:
                break
            offset += count
        return samples


def mix_files(paths: Sequence[str | Path], out_path: str | Path) -> Mixdown:
    """Mix local files into a WAV file.

    Raises:
        JobError: no_stems, truncated_audio, and as `open_audio`; the message names the file.
        OSError: a file cannot be read or written.
    """
    out = Path(out_path)
    with ExitStack() as stack:
        readers = [stack.enter_context(open_audio(path, name=str(path))) for path in paths]
        fmt = mix_format(readers)
        fd = open_scratch(out.parent)
        stack.callback(os.close, fd)
        bus = MixBus(fd, fmt)
        for index, window in enumerate(group_windows(readers, fmt)):
            bus.add(index, window)
        return bus.write_wav(out)


def _write_all(fd: int, samples: Window, offset: int) -> None:
    if not samples.size:
        return
    view = samples.data.cast("B")
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _magnitude(samples: NDArray[Any]) -> int:
    """Largest absolute value. Not of `np.abs`, which has none for the smallest integer."""
    return max(int(samples.max()), -int(samples.min())) if samples.size else 0


def _to_int16(total: Window, factor: float) -> NDArray[np.int16]:
    scaled = total * factor
    np.rint(scaled, out=scaled)
    # Rounding may step over the limit by one.
    np.clip(scaled, -PEAK_LIMIT_INT16, PEAK_LIMIT_INT16, out=scaled)
    return scaled.astype(np.int16)

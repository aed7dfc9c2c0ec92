"""The waveform of a PCM file that comes in pieces: no file, no second look at the bytes."""

from __future__ import annotations

from typing import Self

from waveflow_ray.audio.decode import Limits
from waveflow_ray.audio.pcm import PcmLayout, decode, pcm_layout
from waveflow_ray.audio.peaks import PeakMeter, Waveform, waveform


class PcmStream:
    """Takes a WAV or AIFF file piece by piece, however it is cut. `of` makes it."""

    def __init__(self, layout: PcmLayout, num_peaks: int) -> None:
        self._layout = layout
        self._meter = PeakMeter(layout.frames, num_peaks)
        self._skip = layout.data_start
        self._frames = 0
        self._rest = b""  # the beginning of a frame whose end has not come

    @classmethod
    def of(cls, head: bytes, size: int, limits: Limits, num_peaks: int) -> Self | None:
        """None where more than the head is needed to tell what it is; `AudioReader` does, or says
        what is wrong with it.

        Args:
            head: its first bytes, which `add` is to be given, too.
            size: of the whole file, in bytes.
            num_peaks: how many peaks, 1 or more.
        """
        layout = pcm_layout(head, size)
        if layout is None or not limits.permit(layout.channels, layout.sample_rate, layout.frames):
            return None
        return cls(layout, num_peaks)

    def add(self, piece: bytes) -> None:
        """Take in the next bytes of the file."""
        data = memoryview(piece)[self._skip :]
        self._skip -= len(piece) - len(data)
        size = self._layout.frame_bytes
        if self._rest:
            missing = size - len(self._rest)
            self._rest += data[:missing]
            data = data[missing:]
            if len(self._rest) < size:
                return
            self._take(memoryview(self._rest))
        whole = len(data) // size * size
        self._rest = bytes(data[whole:])
        self._take(data[:whole])

    def waveform(self) -> Waveform:
        """What was drawn, once the whole file has come."""
        layout = self._layout
        return waveform(self._meter, layout.sample_rate, layout.channels, self._frames)

    def _take(self, frames: memoryview) -> None:
        layout = self._layout
        frames = frames[: (layout.frames - self._frames) * layout.frame_bytes]
        self._frames += len(frames) // layout.frame_bytes
        if layout.encoding == "PCM_24" and layout.channels <= 2 and not layout.big_endian:
            self._meter.add_24_bits(frames, layout.channels)
        else:
            self._meter.add(decode(frames, layout, numba=False))

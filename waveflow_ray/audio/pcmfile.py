"""WAV and AIFF files of 16 and 24 bits, read without a decoder, where their layout is certain.

libsndfile takes the samples through a buffer of 8 KB, byte by byte for 24 bits.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from waveflow_ray.audio.pcm import SAMPLE_BYTES, PcmLayout, pcm_layout, widen_24_bits

HEAD_BYTES = 64 * 1024
ENCODINGS = ("PCM_16", "PCM_24")


class PcmFile:
    """A file of PCM samples with the part of SoundFile's interface that `AudioReader` uses."""

    def __init__(self, fd: int, layout: PcmLayout) -> None:
        self._fd, self._layout = fd, layout
        self._at = 0
        self._bytes = np.empty(0, np.uint8)
        self.format, self.subtype = layout.container, layout.encoding
        self.samplerate, self.channels = layout.sample_rate, layout.channels
        self.frames = layout.frames

    @classmethod
    def open(cls, fd: int) -> Self | None:
        """None where it is not one that is read here; libsndfile then says what it is.

        Args:
            fd: stays the caller's; its position is neither used nor changed.
        """
        if sys.byteorder != "little":
            return None
        layout = pcm_layout(os.pread(fd, HEAD_BYTES, 0), os.fstat(fd).st_size)
        if layout is None or layout.big_endian or layout.encoding not in ENCODINGS:
            return None
        return cls(fd, layout)

    def read(self, out: NDArray[Any]) -> NDArray[Any]:
        """Fill `out`, ``(n, channels)``; returns the part that was filled, none at the end.

        Args:
            out: C-contiguous; int16 for 16 bits, int32 for 24; full scale is that of the integers.
        """
        layout = self._layout
        out = out[: layout.frames - self._at]
        start, _ = layout.byte_range(self._at, 0)
        if layout.encoding == "PCM_16":
            assert out.dtype == np.int16
            count = os.preadv(self._fd, [out.data], start) // layout.frame_bytes if out.size else 0
        else:
            count = self._read_24_bits(out, start)
        self._at += count
        return out[:count]

    def _read_24_bits(self, out: NDArray[np.int32], start: int) -> int:
        size = out.size * SAMPLE_BYTES["PCM_24"]
        if len(self._bytes) < size:
            self._bytes = np.empty(size, np.uint8)
        raw = self._bytes[:size].data
        count = os.preadv(self._fd, [raw], start) // self._layout.frame_bytes if size else 0
        widen_24_bits(raw, out[:count])
        return count

    def close(self) -> None:
        """Nothing is to close; may be called twice."""

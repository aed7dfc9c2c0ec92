"""FLAC files by dr_flac (miniaudio), which needs two thirds of libFLAC's time.

It skips damaged frames instead of stopping at them, so it only reads files that say how many
frames there should be.
"""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

STREAMINFO_BYTES = 42
SUBTYPES = {8: "PCM_S8", 16: "PCM_16", 24: "PCM_24"}


class FlacFile:
    """A FLAC file with the part of SoundFile's interface that `AudioReader` uses."""

    format = "FLAC"

    def __init__(self, decoder: Any, close: Any, rate: int, channels: int, bits: int, frames: int):
        self._decoder, self._close = decoder, close
        self.samplerate, self.channels = rate, channels
        self.subtype = SUBTYPES[bits]
        self.frames = frames

    @classmethod
    def open(cls, fd: int) -> Self | None:
        """None where it is not one that is read here; libsndfile then says what it is.

        Args:
            fd: opened anew, so its position does not matter.
        """
        head = os.pread(fd, STREAMINFO_BYTES, 0)
        # RFC 9639: the first block is STREAMINFO. 20 bits for the rate in Hz, 3 for the channels
        # less one, 5 for the bits less one, 36 for the number of frames.
        if len(head) < STREAMINFO_BYTES or head[:4] != b"fLaC" or head[4] & 0x7F:
            return None
        packed = int.from_bytes(head[18:26], "big")
        rate, channels = packed >> 44, (packed >> 41 & 7) + 1
        bits, frames = (packed >> 36 & 31) + 1, packed & 0xFFFFFFFFF
        if bits not in SUBTYPES or not rate or not frames:
            return None
        from miniaudio import ffi, lib

        decoder = lib.ma_dr_flac_open_file(f"/proc/self/fd/{fd}".encode(), ffi.NULL)
        if decoder == ffi.NULL:
            return None
        return cls(decoder, lib.ma_dr_flac_close, rate, channels, bits, frames)

    def read(self, out: NDArray[Any]) -> NDArray[Any]:
        """Fill `out`, ``(n, channels)``; returns the part that was filled, none at the end.

        Args:
            out: int16 for 8 and 16 bits, int32 for 24; full scale is that of the integers.
        """
        from miniaudio import ffi, lib

        if out.dtype == np.int16:
            read, samples = lib.ma_dr_flac_read_pcm_frames_s16, "short[]"
        else:
            read, samples = lib.ma_dr_flac_read_pcm_frames_s32, "int[]"
        count = read(self._decoder, len(out), ffi.from_buffer(samples, out, require_writable=True))
        return out[:count]

    def close(self) -> None:
        """May be called twice."""
        if self._decoder is not None:
            self._close(self._decoder)
            self._decoder = None

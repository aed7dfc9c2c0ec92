"""The last pass of a mix: gain, rounding, the file as it was asked for, and its waveform."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from waveflow_ray import __version__
from waveflow_ray.audio.kernels import quantise
from waveflow_ray.audio.peaks import bucket_frames, normalise
from waveflow_ray.audio.sndfile import UnsyncedFile
from waveflow_ray.audio.tags import id3_tag, license_to_encoder

OutputFormat = Literal["wav", "flac", "ogg", "mp3"]

HEADER_BYTES = 1024 * 1024
"""Encoders come back to the beginning of a file, never behind this."""
WAV_MAX_BYTES = (1 << 32) - 4096
"""Samples beyond this need RF64; the rest of the 4 GB is for headers."""
BLOCK_FRAMES = 16 * 1024
"""Of one write. What the Vorbis encoder makes depends on how its input is cut."""
DITHER_FRAMES = 16 * 1024

MADE_BY = f"waveflow-ray {__version__}"
"""For the tags."""
CONTENT_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "wav": {},
    # Level 3 of 8: a third of the time of level 5, and 1 % larger.
    "flac": {"compression_level": 3 / 8},
    # Quality 7 of 10, about 224 kbit/s.
    "ogg": {"compression_level": 0.3},
    "mp3": {"compression_level": 0.0, "bitrate_mode": "CONSTANT"},  # 320 kbit/s
}


@dataclass(frozen=True)
class Encoding:
    """How a mix is written.

    Attributes:
        bit_depth: 16, 24 or 32 (float) for wav, 16 or 24 for flac; of no meaning for others.
        dither: add triangular noise of one step before rounding to 16 or 24 bits.
    """

    format: OutputFormat = "wav"
    bit_depth: int = 16
    dither: bool = False

    @property
    def extension(self) -> str:
        """Of the file's name, without a dot."""
        return self.format

    @property
    def content_type(self) -> str:
        """MIME type."""
        return CONTENT_TYPES[self.format]

    @property
    def steps(self) -> float:
        """Full scale in steps of the file's integers; 1.0 for float samples."""
        is_float = self.format in ("ogg", "mp3") or self.bit_depth == 32
        return 1.0 if is_float else 2.0 ** (self.bit_depth - 1)


@dataclass(frozen=True)
class Written:
    """What came of it.

    Attributes:
        sample_peak: the largest sample written, full scale 1.0.
        clipped_samples: how many were beyond full scale.
        over_db: by how much the loudest of them; 0 if there is none.
        peaks: waveform of the samples written, from 0 to 1, relative to the largest.
    """

    sample_peak: float
    clipped_samples: int
    over_db: float
    peaks: list[float]


class MixWriter:
    """Writes a mix whose samples come in blocks. For Vorbis all but the last have to be multiples
    of `BLOCK_FRAMES`; else their sizes do not matter.

    Args:
        fd: of an empty file; stays open.
        frames: how many will come.
        factor: makes full scale 1.0 of a sample of the bus.
        ceiling: largest 16-bit magnitude that rounding may reach; None is full scale.
        title: for the tags.
        seed: of the dither's noise, 0 to 2^64 - 1.
    """

    def __init__(
        self,
        fd: int,
        encoding: Encoding,
        *,
        sample_rate: int,
        channels: int,
        frames: int,
        factor: float,
        ceiling: int | None = None,
        num_peaks: int,
        title: str | None = None,
        seed: int = 0,
    ) -> None:
        self._fd = fd
        self._encoding = encoding
        self._channels = channels
        self._factor = factor * encoding.steps
        self._low, self._high = _range(encoding, ceiling)
        self._ceiling = ceiling
        self._seed = seed
        self._waveform = np.zeros(1 + num_peaks)
        self._waveform[0] = bucket_frames(frames, num_peaks)
        self._at = 0
        self._top = self._wanted = 0.0
        self._clipped = 0
        self._noise: tuple[int, NDArray[np.float32]] | None = None
        data_bytes = frames * channels * encoding.bit_depth // 8
        name = "RF64" if encoding.format == "wav" and data_bytes > WAV_MAX_BYTES else None
        if encoding.format == "mp3":
            os.write(fd, id3_tag(title, MADE_BY))  # libsndfile goes on from here
        try:
            self._file: Any = UnsyncedFile(
                fd,
                "w",
                sample_rate,
                channels,
                _subtype(encoding),
                format=name or encoding.format.upper(),
                closefd=False,
                **_OPTIONS[encoding.format],
            )
        except soundfile.LibsndfileError as error:
            raise OSError(f"the mix cannot be written: {error}") from error
        if encoding.format != "mp3":
            if title is not None:
                self._file.title = title
            self._file.software = MADE_BY
        if encoding.format in ("flac", "ogg"):
            self._file.license = MADE_BY

    @property
    def written(self) -> int:
        """Bytes in the file so far; behind the first `HEADER_BYTES` they are final."""
        return os.fstat(self._fd).st_size

    def add(self, samples: NDArray[np.int32]) -> None:
        """Write the next frames: samples of the bus, ``(n, channels)``; not changed.

        Raises:
            OSError: the file cannot be written.
        """
        for start in range(0, len(samples), BLOCK_FRAMES):
            block = samples[start : start + BLOCK_FRAMES]
            out = np.empty(block.shape, self._dtype)
            wanted, top, clipped = quantise(
                block,
                self._factor,
                self._low,
                self._high,
                self._encoding.steps > 1.0,
                self._noise_for(len(block)),
                out,
                self._waveform,
                self._at,
            )
            self._wanted, self._top = max(self._wanted, wanted), max(self._top, top)
            self._clipped += clipped
            self._at += len(block)
            if self._encoding.bit_depth == 24 and self._dtype == np.int32:
                out <<= 8  # libsndfile takes the upper bits
            try:
                self._file.write(out)
            except soundfile.LibsndfileError as error:
                raise OSError(f"the mix cannot be written: {error}") from error

    def finish(self) -> Written:
        """Complete the file."""
        self.close()
        if self._encoding.format in ("flac", "ogg"):
            license_to_encoder(self._fd, MADE_BY)
        steps = self._encoding.steps
        # A ceiling is above what the gain leaves; only rounding reaches it.
        clipped = self._clipped if self._ceiling is None else 0
        return Written(
            sample_peak=self._top / steps,
            clipped_samples=clipped,
            over_db=20.0 * math.log10(self._wanted / steps) if clipped else 0.0,
            peaks=normalise(self._waveform[1:] / (steps * self._channels)),
        )

    def close(self) -> None:
        """Close the encoder; the file is complete only after `finish`."""
        self._file.close()

    @property
    def _dtype(self) -> type[np.generic]:
        if self._encoding.steps == 1.0:
            return np.float32
        return np.int16 if self._encoding.bit_depth == 16 else np.int32

    def _noise_for(self, frames: int) -> NDArray[np.float32]:
        """Triangular noise from -1 to 1 step, the same for a frame however blocks are cut."""
        if not self._encoding.dither:
            return np.empty((0, 0), np.float32)
        pieces = []
        at, stop = self._at, self._at + frames
        while at < stop:
            index, begin = divmod(at, DITHER_FRAMES)
            if self._noise is None or self._noise[0] != index:
                key = np.array([self._seed, index], np.uint64)
                rng = np.random.Generator(np.random.Philox(key=key))
                uniform = rng.random((2, DITHER_FRAMES, self._channels), np.float32)
                self._noise = index, uniform[0] - uniform[1]
            piece = self._noise[1][begin : begin + stop - at]
            pieces.append(piece)
            at += len(piece)
        return np.concatenate(pieces)


def _range(encoding: Encoding, ceiling: int | None) -> tuple[float, float]:
    steps = encoding.steps
    if steps == 1.0:
        limit = math.inf if encoding.format == "wav" else 1.0
        return -limit, limit
    if ceiling is not None and encoding.bit_depth == 16:
        return -float(ceiling), float(ceiling)
    return -steps, steps - 1.0


def _subtype(encoding: Encoding) -> str:
    if encoding.format == "ogg":
        return "VORBIS"
    if encoding.format == "mp3":
        return "MPEG_LAYER_III"
    return {16: "PCM_16", 24: "PCM_24", 32: "FLOAT"}[encoding.bit_depth]

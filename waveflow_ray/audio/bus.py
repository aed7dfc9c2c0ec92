"""The fixed-point bus: every stem of a mix on one grid of int32 samples.

Integer addition is associative and commutative, so a mix does not depend on who adds up which
stems in which order, nor on the size of blocks and windows. Each stem has headroom of 8 times
full scale; with n stems the grid has ``28 - ceil(log2(n))`` fractional bits, so that all of
them together fit: ``n * 8 * 2**bits <= 2**31``. 16-bit samples are on the grid as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from waveflow_ray.audio.decode import AudioReader, Block
from waveflow_ray.errors import ErrorCode, JobError

Window = NDArray[np.int32]

HEADROOM = 8
"""Times full scale, in each stem. Float samples beyond are clipped; others never are."""
WINDOW_S = 5
BLOCK_FRAMES = 32 * 1024
"""Smaller than when reading one file: as many stems as there are hold a block each."""
INT16_BITS = 15
MAX_STEMS = 1 << (28 - INT16_BITS)

SURROUND_GAIN = 0.5**0.5
_FIVE_ONE = {
    # Front left, front right, centre, low frequency effects, left and right surround.
    "wav": ((0, 2, 4), (1, 2, 5)),
    # Vorbis I, section 4.3.9: left, centre, right, left and right surround, low frequencies.
    "ogg": ((0, 1, 3), (2, 1, 4)),
}


class StreamInfo(Protocol):
    """What has to be known of a stem to plan a mix: Hz and number of channels."""

    @property
    def sample_rate(self) -> int: ...
    @property
    def channels(self) -> int: ...


@dataclass(frozen=True)
class MixFormat:
    """What all parts of one mix agree on.

    Attributes:
        sample_rate: in Hz.
        channels: 1 or 2.
        stems: how many there are in the whole mix; decides the grid.
        window_frames: length of the pieces in which sums are handed on.
    """

    sample_rate: int
    channels: int
    stems: int
    window_frames: int

    @property
    def bits(self) -> int:
        """Fractional bits of the bus."""
        return fraction_bits(self.stems)


def fraction_bits(n_stems: int) -> int:
    """Fractional bits of a bus for that many stems, 15 to 28.

    Raises:
        ValueError: for none, or more than 8,192, which 16 bits of each would not fit.
    """
    if not 1 <= n_stems <= MAX_STEMS:
        raise ValueError(f"a mix has 1 to {MAX_STEMS} stems, not {n_stems}")
    # (n - 1).bit_length() is ceil(log2(n)), exactly.
    return 28 - (n_stems - 1).bit_length()


def mix_format(infos: Iterable[StreamInfo]) -> MixFormat:
    """The format of a mix: the highest sample rate; stereo unless every stem is mono.

    Raises:
        JobError: no_stems, if there is none.
    """
    stems = list(infos)
    if not stems:
        raise JobError(ErrorCode.NO_STEMS, "There are no stems to mix.")
    rate = max(stem.sample_rate for stem in stems)
    channels = 2 if any(stem.channels > 1 for stem in stems) else 1
    return MixFormat(rate, channels, len(stems), WINDOW_S * rate)


def stem_windows(reader: AudioReader, fmt: MixFormat) -> Iterator[Window]:
    """One stem on the bus grid, resampled to the mix's rate (soxr, HQ) where it differs.

    A mono stem is the same in both channels of a stereo mix, at unity gain. 5.1 becomes stereo
    by ITU-R BS.775 (centre and surrounds at -3 dB, no low frequency effects), other layouts of
    more than two channels by averaging the odd ones into the left and the even ones into the
    right; both so that full scale is not exceeded.

    Yields:
        int32 ``(n, fmt.channels)``, 1.0 is ``2**fmt.bits``; n is ``fmt.window_frames`` but
        for the last. Each is the caller's to keep.

    Raises:
        JobError: truncated_audio at the end if the stem breaks off; as `AudioReader.blocks`.
    """
    return group_windows([reader], fmt)


def group_windows(readers: Sequence[AudioReader], fmt: MixFormat) -> Iterator[Window]:
    """The sum of several stems, as `stem_windows`; the longest decides the length."""
    feeds = [_Feed(reader, fmt) for reader in readers]
    while True:
        window = np.zeros((fmt.window_frames, fmt.channels), np.int32)
        length = max((feed.add_to(window) for feed in feeds), default=0)
        if length:
            yield window[:length]
        if length < fmt.window_frames:
            return


class _Feed:
    """Adds a stem to window after window."""

    def __init__(self, reader: AudioReader, fmt: MixFormat) -> None:
        self._pieces = _naming(reader, _on_grid(reader, fmt))
        self._rest: Window = np.empty((0, fmt.channels), np.int32)

    def add_to(self, window: Window) -> int:
        """Returns how many frames were there to add."""
        at = 0
        while at < len(window):
            if not len(self._rest):
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = piece
            part = self._rest[: len(window) - at]
            # A mono piece is added to both channels.
            window[at : at + len(part)] += part
            self._rest = self._rest[len(part) :]
            at += len(part)
        return at


def _naming(reader: AudioReader, pieces: Iterator[Window]) -> Iterator[Window]:
    """Errors in the midst of many stems say which one they are about."""
    try:
        yield from pieces
    except JobError as error:
        if not reader.name:
            raise
        name = reader.name.rsplit("/", 1)[-1]
        message = f"Stem {name!r}: {error.message}"
        raise JobError(error.code, message, error.detail or reader.name) from error


def _on_grid(reader: AudioReader, fmt: MixFormat) -> Iterator[Window]:
    """Blocks of a stem as int32 on the grid, ``(n, 1)`` or ``(n, 2)``."""
    # Blocks of one size whatever the window: the resampler sees the same input always.
    blocks = reader.blocks(BLOCK_FRAMES)
    if reader.sample_rate == fmt.sample_rate:
        for block in blocks:
            yield _quantised(_to_stereo(block, reader.container), fmt.bits)
    else:
        channels = min(reader.channels, 2)
        stream = soxr.ResampleStream(
            reader.sample_rate, fmt.sample_rate, channels, dtype="float32", quality="HQ"
        )
        for block in blocks:
            samples = _as_float(_to_stereo(block, reader.container))
            yield _quantised(stream.resample_chunk(samples), fmt.bits)
        tail = stream.resample_chunk(np.empty((0, channels), np.float32), last=True)
        yield _quantised(tail, fmt.bits)
    if reader.truncated:
        raise JobError(
            ErrorCode.TRUNCATED_AUDIO,
            "The audio file breaks off before its end; please upload it again.",
            reader.name,
        )


def _to_stereo(block: Block, container: str) -> Block:
    """At most two channels. No matrix product: its rounding would depend on the block size."""
    channels = block.shape[1]
    if channels <= 2:
        return block
    samples = _as_float(block)
    sides: Sequence[Sequence[int]]
    gains: Sequence[float]
    stereo = np.zeros((len(block), 2), np.float32)
    if channels == 6:
        sides = _FIVE_ONE["ogg" if container == "OGG" else "wav"]
        gains = (1.0, SURROUND_GAIN, SURROUND_GAIN)
    else:
        sides = (tuple(range(0, channels, 2)), tuple(range(1, channels, 2)))
        gains = (1.0,) * channels
    for side, sources in enumerate(sides):
        weights = gains[: len(sources)]
        for source, weight in zip(sources, weights, strict=True):
            stereo[:, side] += samples[:, source] * np.float32(weight / sum(weights))
    return stereo


def _as_float(block: Block) -> NDArray[np.float32]:
    if block.dtype == np.int16:
        return np.multiply(block, np.float32(2.0**-INT16_BITS), dtype=np.float32)
    return block.astype(np.float32, copy=False)


def _quantised(block: Block, bits: int) -> Window:
    if block.dtype == np.int16:
        return np.left_shift(block, bits - INT16_BITS, dtype=np.int32)
    # Scaling by a power of two is exact. The largest float32 below the headroom fits int32.
    limit = np.float32(HEADROOM << bits)
    scaled = np.multiply(block, np.float32(1 << bits), dtype=np.float32)
    np.clip(scaled, -limit, np.nextafter(limit, np.float32(0)), out=scaled)
    return np.rint(scaled, out=scaled).astype(np.int32)

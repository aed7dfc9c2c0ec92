"""The plan of a mix: cells of (stems x time window) that can be done apart from each other.

Stems whose samples can be fetched by byte range (PCM at the rate of the mix) are cut into
windows of time: a cell is one window of all of them, so no one reads more than its share. All
others have to be decoded from their start: a cell is a group of them over their whole length.
Whoever does which cell, the sum is the same to the bit.

Pure arithmetic on what is known of the stems; nothing is read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from waveflow_ray.audio.bus import WINDOW_FRAMES, MixFormat, fraction_bits
from waveflow_ray.audio.clip import Clip, clip_of
from waveflow_ray.audio.pcm import PcmLayout
from waveflow_ray.audio.samples import MAX_CHANNELS
from waveflow_ray.audio.spec import MP3_RATES, MixSpec
from waveflow_ray.errors import ErrorCode, JobError

READS_AHEAD = 4
"""Byte ranges of other stems that a cell fetches while it sums one."""
BLOCK_FRAMES = 32 * 1024
"""Smaller than when reading one file: as many stems as there are hold a block each."""
CELL_BYTES = 100 * 2**20
"""Memory that a cell may take for samples."""
MIN_WINDOW_FRAMES = 1 << 14
"""Windows are this times a power of two, as encode.BLOCK_FRAMES asks for."""


@dataclass(frozen=True)
class StemInfo:
    """What is known of a stem before it is decoded.

    Attributes:
        name: key of the object or path of the file.
        size: in bytes.
        frames: exact, or None where only decoding tells.
        layout: where its samples lie, if they can be fetched by byte range.
        version: what the storage calls this state of the object.
    """

    name: str
    size: int
    sample_rate: int
    channels: int
    frames: int | None = None
    layout: PcmLayout | None = None
    version: str = ""


@dataclass(frozen=True)
class Part:
    """One stem's share of a cell. `index` counts the stems of the mix."""

    index: int
    stem: StemInfo
    clip: Clip


@dataclass(frozen=True)
class Cell:
    """What one task does.

    Attributes:
        window: the one window that is summed, by byte range; None means all of them, decoded
            from the start.
        skip: windows that are done already (the process before this one died).
    """

    parts: tuple[Part, ...]
    format: MixFormat
    window: int | None = None
    skip: int = 0

    def resumed(self, windows_done: int) -> Cell:
        """The cell again, without what of it has been added to the bus already."""
        return self if self.window is not None else replace(self, skip=windows_done)

    @property
    def memory(self) -> int:
        """Bytes of samples that are held at a time, at most."""
        fmt = self.format
        window = 4 * fmt.channels * fmt.window_frames
        if self.window is None:
            return window + sum(_decoder_bytes(part.stem) for part in self.parts)
        frames = fmt.window_frames
        largest = max(_sample_bytes(part.stem) for part in self.parts)
        # What is read ahead and being read, the decoded samples, in float, and their product.
        return window + frames * (
            min(READS_AHEAD + 1, len(self.parts)) * largest + 3 * 4 * MAX_CHANNELS
        )


@dataclass(frozen=True)
class MixPlan:
    """Attributes:
    parts: the stems that are heard.
    cells: in the order in which they shall be started.
    frames: length of the mix, where it is known before decoding.
    why: the reasons, as sentences.
    """

    format: MixFormat
    parts: tuple[Part, ...]
    cells: tuple[Cell, ...]
    frames: int | None
    why: tuple[str, ...]


def plan_mix(
    spec: MixSpec,
    stems: Sequence[StemInfo],
    parallelism: int,
    window_frames: int = WINDOW_FRAMES,
) -> MixPlan:
    """Share a mix out.

    Args:
        stems: one for each of ``spec.stems``, in that order.
        parallelism: how many cells may run at a time.
        window_frames: at most; shorter windows are chosen where memory asks for it.

    Raises:
        JobError: no_stems, if none is heard; invalid_message, for a part beyond the end of
            its stem, or where nothing is left to hear.
    """
    if not spec.audible:
        raise JobError(ErrorCode.NO_STEMS, "There is nothing to mix: every stem is muted.")
    heard = [(i, spec.stems[i], stems[i]) for i in spec.audible]
    rate = spec.sample_rate or max(stem.sample_rate for _, _, stem in heard)
    if spec.output_format == "mp3" and rate not in MP3_RATES:
        rate = max((known for known in MP3_RATES if known <= rate), default=MP3_RATES[0])
    wide = any(stem.channels > 1 or wish.pan for _, wish, stem in heard)
    parts = tuple(
        Part(i, stem, clip_of(wish, stem.sample_rate, stem.frames, rate)) for i, wish, stem in heard
    )
    for part in parts:
        if part.clip.stop is not None and part.clip.start >= part.clip.stop:
            raise JobError(
                ErrorCode.INVALID_MESSAGE,
                f"Stem {part.stem.name.rsplit('/', 1)[-1]!r} ends before its 'start_s'.",
                part.stem.name,
            )
    fmt = MixFormat(
        sample_rate=rate,
        channels=spec.channels or (2 if wide else 1),
        bits=fraction_bits(sum(part.clip.weight for part in parts)),
        window_frames=window_frames,
    )
    by_range = tuple(p for p in parts if p.stem.layout and p.stem.sample_rate == rate)
    from_start = tuple(part for part in parts if part not in by_range)
    fmt = _fitting(fmt, by_range)
    rows = [Cell(group, fmt) for group in _groups(from_start, fmt, parallelism)]
    columns = list(_columns(by_range, fmt))
    ends = [_end(part.clip) for part in parts]
    known = [end for end in ends if end is not None]
    if len(known) == len(ends) and max(known) <= 0:
        raise JobError(
            ErrorCode.INVALID_MESSAGE, "Nothing is left to hear: every stem ends before the mix."
        )
    return MixPlan(
        format=fmt,
        parts=parts,
        # Those that take longest first.
        cells=(*rows, *columns),
        frames=max(known) if len(known) == len(ends) else None,
        why=tuple(_reasons(fmt, by_range, from_start, rows, columns, parallelism)),
    )


def _fitting(fmt: MixFormat, by_range: tuple[Part, ...]) -> MixFormat:
    """Windows that fit the memory of a cell."""
    while fmt.window_frames > MIN_WINDOW_FRAMES and (
        4 * fmt.channels * fmt.window_frames > CELL_BYTES / 4
        or (by_range and Cell(by_range, fmt, 0).memory > CELL_BYTES)
    ):
        fmt = replace(fmt, window_frames=fmt.window_frames // 2)
    return fmt


def _columns(parts: tuple[Part, ...], fmt: MixFormat) -> Iterator[Cell]:
    size = fmt.window_frames
    ends = [_end(part.clip) or 0 for part in parts]
    for window in range(-(-max(ends, default=0) // size)):
        inside = tuple(
            part
            for part, end in zip(parts, ends, strict=True)
            if part.clip.offset < (window + 1) * size and end > window * size
        )
        if inside:
            yield Cell(inside, fmt, window)


def _groups(parts: tuple[Part, ...], fmt: MixFormat, parallelism: int) -> list[tuple[Part, ...]]:
    """As many groups as can run at a time, more where memory asks for it; about the same bytes
    in each."""
    if not parts:
        return []
    for count in range(max(1, min(parallelism, len(parts))), len(parts) + 1):
        shares: list[list[Part]] = [[] for _ in range(count)]
        for part in sorted(parts, key=lambda part: -part.stem.size):
            min(shares, key=lambda share: sum(p.stem.size for p in share)).append(part)
        groups = [tuple(share) for share in shares if share]
        if all(Cell(group, fmt).memory <= CELL_BYTES for group in groups):
            break
    return groups


def _end(clip: Clip) -> int | None:
    """The frame of the mix at which a clip ends; None where only decoding tells."""
    return None if clip.length is None else clip.offset + clip.length


def _sample_bytes(stem: StemInfo) -> int:
    return stem.layout.frame_bytes if stem.layout else 4 * stem.channels


def _decoder_bytes(stem: StemInfo) -> int:
    # A block as it is read, in float, in stereo, resampled; and the decoder's own.
    return BLOCK_FRAMES * 4 * (2 * stem.channels + 6) + 2**20


def _reasons(
    fmt: MixFormat,
    by_range: tuple[Part, ...],
    from_start: tuple[Part, ...],
    rows: list[Cell],
    columns: list[Cell],
    parallelism: int,
) -> Iterator[str]:
    if by_range:
        seconds = fmt.window_frames / fmt.sample_rate
        yield (
            f"{len(by_range)} stems are PCM at the mix's rate: read by byte range, in "
            f"{len(columns)} windows of {seconds:.1f} s."
        )
    if from_start:
        other_rate = sum(part.stem.layout is not None for part in from_start)
        yield (
            f"{len(from_start)} stems are decoded from their start"
            + (f" ({other_rate} because they are resampled)" if other_rate else "")
            + f", in {len(rows)} groups of about the same size, for {parallelism} at a time."
        )

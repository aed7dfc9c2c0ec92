"""A cell of a mix: some stems, decoded, resampled and summed, window by window."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from waveflow_ray.audio.bus import MixFormat, Window, add_to_bus, as_float, to_stereo
from waveflow_ray.audio.clip import resampled_length
from waveflow_ray.audio.decode import AudioReader
from waveflow_ray.audio.pcm import PcmLayout, decode
from waveflow_ray.audio.plan import BLOCK_FRAMES, READS_AHEAD, Cell, Part, StemInfo
from waveflow_ray.audio.samples import Block
from waveflow_ray.errors import ErrorCode, JobError


@dataclass(frozen=True)
class CellEnd:
    """The last thing that a cell yields: the index and the length in frames of each file that
    was decoded from its start, who did the cell, how much was read for it, and the seconds of CPU
    that it took in a process of its own."""

    frames: tuple[tuple[int, int], ...]
    node: str = ""
    bytes_read: int = 0
    cpu_s: float = 0.0


CellOutput = tuple[int, Window] | CellEnd
"""The index of a window and the sum of a cell's stems in it; or the end of the cell."""


class Source(Protocol):
    """Where stems are."""

    def read(self, stem: StemInfo, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        ...

    def open(self, stems: Sequence[StemInfo]) -> AbstractContextManager[list[AudioReader]]:
        """Whole files, ready to be decoded."""
        ...


def cell_windows(cell: Cell, source: Source) -> Iterator[CellOutput]:
    """The sum of a cell's stems.

    Yields:
        the index of a window and its sum, int32 ``(n, channels)``, n at most
        ``format.window_frames``, the caller's to keep; windows where nothing sounds are left
        out. At last a `CellEnd`.

    Raises:
        JobError: a stem cannot be read to its end; the message names it.
    """
    if cell.window is not None:
        yield cell.window, _window_by_range(cell, cell.window, source)
        yield CellEnd(())  # the lengths of such files were known before
        return
    with source.open([part.stem for part in cell.parts]) as readers:
        feeds = [
            _Feed(part, reader, cell.format)
            for part, reader in zip(cell.parts, readers, strict=True)
        ]
        window, size = 0, cell.format.window_frames
        while any(not feed.ended for feed in feeds):
            total = np.zeros((size, cell.format.channels), np.int32)
            length = max(feed.add_to(total, window * size) for feed in feeds)
            if length and window >= cell.skip:
                yield window, total[:length]
            window += 1
        yield CellEnd(tuple((feed.part.index, feed.file_frames) for feed in feeds))


def _window_by_range(cell: Cell, window: int, source: Source) -> Window:
    size, bits = cell.format.window_frames, cell.format.bits
    first = window * size
    spans: list[tuple[Part, PcmLayout, int, int]] = []
    for part in cell.parts:
        layout, length = part.stem.layout, part.clip.length
        assert layout is not None
        assert length is not None
        begin = max(0, first - part.clip.offset)
        spans.append((part, layout, begin, min(length, first + size - part.clip.offset)))
    end = max(part.clip.offset + stop for part, _, _, stop in spans)
    total = np.zeros((end - first, cell.format.channels), np.int32)

    def fetch(span: tuple[Part, PcmLayout, int, int]) -> bytes:
        part, layout, begin, stop = span
        start = part.clip.start + begin
        with naming(part.stem.name):
            return source.read(part.stem, *layout.byte_range(start, stop - begin))

    with ThreadPoolExecutor(READS_AHEAD) as pool:
        waiting: deque[Future[bytes]] = deque()
        ahead = iter(spans)
        for span in spans:
            while len(waiting) <= READS_AHEAD and (later := next(ahead, None)) is not None:
                waiting.append(pool.submit(fetch, later))
            part, layout, begin, stop = span
            block = to_stereo(decode(waiting.popleft().result(), layout), layout.container)
            at = part.clip.offset + begin - first
            envelope = part.clip.envelope(begin, stop - begin, part.clip.length)
            add_to_bus(total[at : at + len(block)], block, part.clip, bits, envelope)
    return total


class _Feed:
    """Adds a stem that is decoded from its start to window after window."""

    def __init__(self, part: Part, reader: AudioReader, fmt: MixFormat) -> None:
        self.part = part
        self.ended = False
        self._reader = reader
        self._format = fmt
        self._pieces = self._named_pieces()
        self._rest: Block = np.empty((0, 1), np.int16)
        self._at = 0
        """Frame of the part at which `_rest` begins, at the mix's rate."""
        self._length = part.clip.length

    @property
    def file_frames(self) -> int:
        """Length of the whole file."""
        return max(self._reader.frames_read, self._reader.claimed_frames if self._stopped else 0)

    @property
    def _stopped(self) -> bool:
        return self.part.clip.stop is not None

    def add_to(self, total: Window, first: int) -> int:
        """Add what falls into the window that begins at frame `first` of the mix.

        Returns:
            the end of what was added, in frames of the window; 0 if there was nothing.
        """
        clip, length = self.part.clip, 0
        while not self.ended:
            if not len(self._rest):
                piece = next(self._pieces, None)
                if piece is None:
                    self.ended = True
                    break
                self._rest = piece
            at = clip.offset + self._at - first
            if at >= len(total):
                break
            skipped = min(max(0, -at), len(self._rest))  # before the beginning of the mix
            self._drop(skipped)
            at += skipped
            piece = self._rest[: len(total) - at]
            if len(piece):
                envelope = clip.envelope(self._at, len(piece), self._length)
                add_to_bus(total[at : at + len(piece)], piece, clip, self._format.bits, envelope)
                length = at + len(piece)
                self._drop(len(piece))
        return length

    def _drop(self, count: int) -> None:
        self._rest = self._rest[count:]
        self._at += count

    def _named_pieces(self) -> Iterator[Block]:
        with naming(self.part.stem.name):
            if self.part.clip.fade_out and self._length is None:
                self._length = self._counted_length()
            yield from self._at_mix_rate()

    def _counted_length(self) -> int:
        """What the clip's length is, found by decoding: only the end tells where a fade-out
        begins, and headers of MP3 are estimates."""
        frames = sum(len(block) for block in self._part_blocks())
        self._reader.rewind()
        return resampled_length(frames, self._reader.sample_rate, self._format.sample_rate)

    def _part_blocks(self) -> Iterator[Block]:
        """The blocks of the part of the file that is to sound."""
        clip, at = self.part.clip, 0
        # Blocks of one size whatever the window: the resampler sees the same input always.
        for block in self._reader.blocks(BLOCK_FRAMES):
            begin = max(0, clip.start - at)
            stop = len(block) if clip.stop is None else min(len(block), clip.stop - at)
            at += len(block)
            if begin < stop:
                yield block[begin:stop]
            if clip.stop is not None and at >= clip.stop:
                break
        if self._reader.truncated:
            raise JobError(
                ErrorCode.TRUNCATED_AUDIO,
                "The audio file breaks off before its end; please upload it again.",
                self._reader.name,
            )
        if at <= clip.start:
            raise JobError(ErrorCode.INVALID_MESSAGE, "It ends before its 'start_s'.")

    def _at_mix_rate(self) -> Iterator[Block]:
        """Resampled (soxr, HQ) where the rate differs; ``(n, 1 or 2)``."""
        reader, rate = self._reader, self._format.sample_rate
        stereo = (to_stereo(block, reader.container) for block in self._part_blocks())
        if reader.sample_rate == rate:
            yield from stereo
            return
        channels = min(reader.channels, 2)
        stream = soxr.ResampleStream(
            reader.sample_rate, rate, channels, dtype="float32", quality="HQ"
        )
        for block in stereo:
            yield stream.resample_chunk(as_float(block))
        empty: NDArray[np.float32] = np.empty((0, channels), np.float32)
        yield stream.resample_chunk(empty, last=True)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors inside say which stem they are about."""
    try:
        yield
    except JobError as error:
        if error.code is ErrorCode.STORAGE_UNAVAILABLE:
            raise
        short = name.rsplit("/", 1)[-1]
        raise JobError(
            error.code, f"Stem {short!r}: {error.message}", f"{name} {error.detail}".strip()
        ) from error

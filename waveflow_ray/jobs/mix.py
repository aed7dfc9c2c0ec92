"""mix: the stems of a stage as one file, with its waveform.

Takes   `MixJob`: the keys of the stems.
Writes  ``mixed/{stageId}_mixed_{suffix}.wav`` (PCM 16) and
        ``waveforms/{stageId}_mixed_waveform_{suffix}.json`` (4000 peaks).
Reports /mixing-complete; a job without stageId writes its objects and reports nothing.
Fails   as analysis does, and with truncated_audio, for any stem: nothing is left out. The
        error names the stem.

The stems are shared out to cells. Each cell downloads, decodes, resamples and sums its stems,
and yields the sum window by window; the reduce adds the windows of all cells, in whatever
order they come, to an integer bus in a scratch file, then scales, encodes and uploads. Integer
addition makes every sharing-out give the same samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waveflow_ray.audio.decode import AudioReader, open_audio
from waveflow_ray.audio.media import SNIFF_BYTES
from waveflow_ray.audio.mix import MixBus, MixFormat, group_windows, mix_format
from waveflow_ray.aws.s3 import check_size
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.jobs.analysis import check_media_type, put_json, safe_id
from waveflow_ray.jobs.work import Work
from waveflow_ray.messages import MixJob
from waveflow_ray.outcomes import waveform_document
from waveflow_ray.settings import Settings

WAVEFORM_PEAKS = 4000
PROBE_BYTES = 256 * 1024
PARALLEL_REQUESTS = 8

Window = NDArray[np.int32]


@dataclass(frozen=True)
class Cell:
    """A part of a mix that one process does: some of the stems, over their whole length.

    Attributes:
        keys: the stems, at most as many as there are.
        skip: windows at the start that are done already (the process before this one died).
    """

    keys: tuple[str, ...]
    format: MixFormat
    skip: int = 0


@dataclass(frozen=True)
class Stem:
    """What is known of a stem before it is decoded."""

    key: str
    size: int
    sample_rate: int
    channels: int


Render = Callable[[Sequence[Cell]], Iterator[tuple[int, Window]]]
"""Runs cells and yields (window index, sum of one cell's stems) in any order."""


def run(job: MixJob, work: Work, render: Render, parallelism: int) -> dict[str, Any]:
    """Returns ``mixed_file_path`` and ``waveform_data_path``.

    Args:
        render: runs the cells, in parallel where it can.
        parallelism: how many cells may run at a time.
    """
    with work.stage("download"):
        stems = probe_stems(job.stem_paths, work)
    format_ = mix_format(stems)
    cells = share_out(stems, format_, parallelism)
    with work.scratch() as bus_fd, work.scratch() as wav_fd:
        with work.stage("work"):
            bus = MixBus(bus_fd, format_)
            for index, window in render(cells):
                bus.add(index, window)
            mixdown = bus.write_wav(wav_fd, WAVEFORM_PEAKS)
        work.bytes_in = sum(stem.size for stem in stems)
        work.audio_s = mixdown.duration
        stage_id = "none" if job.stageId is None else safe_id(job.stageId)
        suffix = job.fingerprint[:16]
        key = f"mixed/{stage_id}_mixed_{suffix}.wav"
        with work.stage("upload"):
            work.bytes_out += work.bucket.upload(key, wav_fd, "audio/wav")
    waveform_key = f"waveforms/{stage_id}_mixed_waveform_{suffix}.json"
    put_json(work, waveform_key, waveform_document(mixdown))
    return {"mixed_file_path": key, "waveform_data_path": waveform_key}


def probe_stems(keys: Sequence[str], work: Work) -> list[Stem]:
    """Size, rate and channels of every stem, from its first bytes where they tell."""
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        return list(pool.map(lambda key: _probe(key, work), keys))


def _probe(key: str, work: Work) -> Stem:
    settings = work.settings
    with naming(key), work.scratch() as fd:
        head, size = work.bucket.head_bytes(key, PROBE_BYTES)
        check_size(key, size, settings.max_file_size_bytes)
        check_media_type(head[:SNIFF_BYTES], key, settings)
        os.write(fd, head)
        try:
            return _stem(key, size, fd, settings)
        except JobError:
            if size <= len(head):
                raise
        # The header is further in: a picture in an ID3 tag, or AIFF with its sound first.
        os.lseek(fd, 0, os.SEEK_SET)
        work.bucket.download(key, fd, settings.max_file_size_bytes)
        return _stem(key, size, fd, settings)


def _stem(key: str, size: int, fd: int, settings: Settings) -> Stem:
    with open_audio(fd, max_duration_s=settings.max_duration_s) as reader:
        return Stem(key, size, reader.sample_rate, reader.channels)


def share_out(stems: Sequence[Stem], format_: MixFormat, parallelism: int) -> list[Cell]:
    """Stems in as many cells as can run at a time, about the same bytes in each."""
    shares: list[list[Stem]] = [[] for _ in range(max(1, min(parallelism, len(stems))))]
    for stem in sorted(stems, key=lambda stem: -stem.size):
        min(shares, key=lambda share: sum(stem.size for stem in share)).append(stem)
    return [Cell(tuple(stem.key for stem in share), format_) for share in shares if share]


def cell_windows(cell: Cell, work: Work) -> Iterator[Window]:
    """The sum of a cell's stems, window by window, from ``cell.skip`` on.

    Raises:
        JobError: a stem cannot be read to its end; the message names it.
    """
    settings = work.settings
    with ExitStack() as stack:
        fds = {key: stack.enter_context(work.scratch()) for key in dict.fromkeys(cell.keys)}

        def fetch(key: str) -> None:
            with naming(key):
                work.bucket.download(key, fds[key], settings.max_file_size_bytes)

        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            list(pool.map(fetch, fds))
        readers: list[AudioReader] = []
        for key in cell.keys:
            with naming(key):
                reader = open_audio(_reopen(fds[key], stack), settings.max_duration_s, name=key)
            readers.append(stack.enter_context(reader))
        for index, window in enumerate(group_windows(readers, cell.format)):
            if index >= cell.skip:
                yield window


def _reopen(fd: int, stack: ExitStack) -> int:
    """The same file with a position of its own: a stem can be in a mix twice."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    stack.callback(os.close, again)
    return again


def render_here(work: Work) -> Render:
    """Runs cells in this process, one after the other."""

    def render(cells: Sequence[Cell]) -> Iterator[tuple[int, Window]]:
        for cell in cells:
            yield from enumerate(cell_windows(cell, work), cell.skip)

    return render


def resumed(cell: Cell, windows_done: int) -> Cell:
    """The cell again, without what of it has been added to the bus already."""
    return replace(cell, skip=windows_done)


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Errors inside say which stem they are about."""
    try:
        yield
    except JobError as error:
        if error.code is ErrorCode.STORAGE_UNAVAILABLE:
            raise
        name = key.rsplit("/", 1)[-1]
        raise JobError(
            error.code, f"Stem {name!r}: {error.message}", f"{key} {error.detail}"
        ) from error

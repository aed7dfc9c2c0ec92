"""mix: the stems of a stage as one file, with its waveform.

Takes   `MixJob`: the keys of the stems, and how they shall be mixed.
Writes  ``mixed/{stageId}_mixed_{suffix}.{wav|flac|ogg|mp3}`` and
        ``waveforms/{stageId}_mixed_waveform_{suffix}.json`` (4000 peaks).
Reports /mixing-complete; a job without stageId writes its objects and reports nothing.
Fails   as analysis does, and with truncated_audio, for any stem: nothing is left out. The
        error names the stem.

The plan shares the stems out to cells, which yield the sum of their stems window by window; the
reduce, here, adds the windows of all cells in whatever order they come, measures the sum, then
levels, encodes and uploads. Integer addition makes every plan give the same samples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

from waveflow_ray.audio.cell import CellEnd, CellOutput, cell_windows, naming
from waveflow_ray.audio.decode import AudioReader, open_audio
from waveflow_ray.audio.media import SNIFF_BYTES
from waveflow_ray.audio.mix import HEAD_BYTES, NUM_PEAKS, Mixer, encoding_of, stem_info
from waveflow_ray.audio.plan import Cell, StemInfo, plan_mix
from waveflow_ray.aws.s3 import Head, check_size
from waveflow_ray.aws.upload import StreamedUpload
from waveflow_ray.errors import JobError
from waveflow_ray.jobs.analysis import check_media_type, put_json, safe_id
from waveflow_ray.jobs.limits import limits_of
from waveflow_ray.jobs.work import Work
from waveflow_ray.messages import MixJob
from waveflow_ray.outcomes import waveform_document
from waveflow_ray.settings import Settings

LONG_HEAD_BYTES = 256 * 1024
"""What is read of a stem whose first bytes are tags."""
PARALLEL_REQUESTS = 8
MAX_STEM_FACTS_BYTES = 40_000
"""The stems' facts are left out of a webhook beyond; the main server takes 100 kB."""

Render = Callable[[Sequence[Cell]], Iterator[tuple[int, CellOutput]]]
"""Runs cells; yields the number of a cell and what it yielded, from any cell in any order."""


def run(job: MixJob, work: Work, render: Render, parallelism: int) -> dict[str, Any]:
    """Returns ``mixed_file_path``, ``waveform_data_path`` and ``result``.

    Args:
        render: runs the cells, in parallel where it can.
        parallelism: how many cells may run at a time.
    """
    with work.stage("download"):
        stems = probe_stems([stem.path for stem in job.stems], work)
    plan = plan_mix(job, stems, parallelism)
    encoding = encoding_of(job)
    stage_id = "none" if job.stageId is None else safe_id(job.stageId)
    suffix = job.fingerprint[:16]
    key = f"mixed/{stage_id}_mixed_{suffix}.{encoding.extension}"
    with (
        work.scratch() as bus_fd,
        work.scratch() as out_fd,
        StreamedUpload(work.bucket, key, out_fd, encoding.content_type) as upload,
    ):
        with work.stage("work"):
            mixer = Mixer(
                job,
                plan,
                bus_fd,
                out_fd,
                title=None if job.stageId is None else str(job.stageId),
                seed=int(job.fingerprint[:16], 16),
                num_peaks=NUM_PEAKS,
                written=upload.advance,
            )
            with closing(mixer):
                for cell, output in render(plan.cells):
                    mixer.take(cell, output)
                mixdown = mixer.finish()
        work.bytes_in += mixer.bytes_read
        work.cpu_s += mixer.cpu_s
        work.audio_s = mixdown.duration
        work.notes["cells"] = dict(mixer.cells_by_node)
        with work.stage("upload"):
            work.bytes_out += upload.finish()
    waveform_key = f"waveforms/{stage_id}_mixed_waveform_{suffix}.json"
    put_json(work, waveform_key, waveform_document(mixdown))
    facts = mixer.stem_facts(stems)
    is_short = len(json.dumps(facts)) <= MAX_STEM_FACTS_BYTES
    return {
        "mixed_file_path": key,
        "waveform_data_path": waveform_key,
        "result": mixdown.facts | {"stems": facts if is_short else None},
    }


def probe_stems(keys: Sequence[str], work: Work) -> list[StemInfo]:
    """What every stem is, from its first bytes where they tell."""
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        found = dict(pool.map(lambda key: (key, _probe(key, work)), dict.fromkeys(keys)))
    return [found[key] for key in keys]


def _probe(key: str, work: Work) -> StemInfo:
    settings = work.settings
    with naming(key), work.scratch() as fd:
        for count in (HEAD_BYTES, LONG_HEAD_BYTES):
            head = work.bucket.head(key, count)
            work.bytes_in += len(head.body)
            check_size(key, head.size, settings.max_file_size_bytes)
            check_media_type(head.body[:SNIFF_BYTES], key, settings)
            os.pwrite(fd, head.body, 0)
            try:
                return _info(key, fd, head, settings)
            except JobError:
                if head.size <= len(head.body):
                    raise
        # The header is further in: a picture in an ID3 tag, or AIFF with its sound first.
        os.lseek(fd, 0, os.SEEK_SET)
        work.bytes_in += work.bucket.fetch(key, fd, settings.max_file_size_bytes)
        return _info(key, fd, head, settings)


def _info(key: str, fd: int, head: Head, settings: Settings) -> StemInfo:
    os.lseek(fd, 0, os.SEEK_SET)
    with open_audio(fd, limits_of(settings)) as reader:
        return stem_info(reader, key, head.size, head.body, head.etag)


class S3Files:
    """Stems that are objects in the bucket."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def read(self, stem: StemInfo, start: int, stop: int) -> bytes:
        self._work.bytes_in += stop - start
        return self._work.bucket.read(stem.name, start, stop, stem.version)

    @contextmanager
    def open(self, stems: Sequence[StemInfo]) -> Iterator[list[AudioReader]]:
        work, settings = self._work, self._work.settings
        with ExitStack() as stack:
            names = dict.fromkeys(stem.name for stem in stems)
            fds = {name: stack.enter_context(work.scratch()) for name in names}

            def fetch(name: str) -> None:
                with naming(name):
                    size = work.bucket.fetch(name, fds[name], settings.max_file_size_bytes)
                work.bytes_in += size

            with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
                list(pool.map(fetch, fds))
            readers = []
            for stem in stems:
                with naming(stem.name):
                    fd = _reopen(fds[stem.name], stack)
                    reader = open_audio(fd, limits_of(settings), name=stem.name)
                readers.append(stack.enter_context(reader))
            yield readers


def cell_outputs(cell: Cell, work: Work, node: str = "") -> Iterator[CellOutput]:
    """A cell of stems in the bucket; its end says who did it and what was read."""
    before = work.bytes_in
    for output in cell_windows(cell, S3Files(work)):
        if isinstance(output, CellEnd):
            output = replace(output, node=node, bytes_read=work.bytes_in - before)
        yield output


def _reopen(fd: int, stack: ExitStack) -> int:
    """The same file with a position of its own: a stem can be in a mix twice."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    stack.callback(os.close, again)
    return again


def render_here(work: Work) -> Render:
    """Runs cells in this process, one after the other."""

    def render(cells: Sequence[Cell]) -> Iterator[tuple[int, CellOutput]]:
        for index, cell in enumerate(cells):
            for output in cell_outputs(cell, work):
                yield index, output

    return render

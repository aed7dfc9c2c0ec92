"""A mix: the windows of its cells added up, measured, levelled and encoded.

Memory is a few windows, whatever the length and number of stems.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waveflow_ray.audio.bus import MixBus, Window
from waveflow_ray.audio.cell import CellEnd, CellOutput, cell_windows
from waveflow_ray.audio.decode import AudioReader, open_audio
from waveflow_ray.audio.encode import Encoding, MixWriter, Written
from waveflow_ray.audio.level import Level, level_of, likely_level, to_db
from waveflow_ray.audio.loudness import Loudness, LoudnessMeter
from waveflow_ray.audio.pcm import pcm_layout
from waveflow_ray.audio.plan import MixPlan, StemInfo, plan_mix
from waveflow_ray.audio.scratch import open_scratch
from waveflow_ray.audio.spec import MixSpec
from waveflow_ray.errors import ErrorCode, JobError

NUM_PEAKS = 4000
HEAD_BYTES = 16 * 1024
"""Of a stem, enough to find the samples of most PCM files."""

Progress = Callable[[int, int], object]
"""Is told frames done and frames in all, as far as they are known."""


@dataclass(frozen=True)
class Mixdown:
    """A finished mix.

    Attributes:
        duration: in seconds.
        sample_rate: in Hz.
        gain: linear, as it was applied to the sum of the stems.
        peak: the largest sample written, full scale 1.0.
        peaks: waveform of the samples written, relative to its largest value.
        facts: what the webhook says of the mix; docs/messages.md lists it.
    """

    frames: int
    duration: float
    sample_rate: int
    channels: int
    gain: float
    peak: float
    peaks: list[float]
    facts: dict[str, Any]


@dataclass
class Mixer:
    """Takes what the cells of a plan yield, in any order, and writes the mix.

    Args:
        bus_fd, out_fd: of empty files; stay open.
        title: goes into the tags of the file.
        seed: of the dither's noise.
        written: called with the number of bytes at the beginning of the file that are there;
            those of its header may still change. 0 means that it is written anew.
        progress: called after every window.
    """

    spec: MixSpec
    plan: MixPlan
    bus_fd: int
    out_fd: int
    title: str | None = None
    seed: int = 0
    num_peaks: int = NUM_PEAKS
    written: Callable[[int], object] = lambda _count: None
    progress: Progress = lambda _done, _of: None
    cells_by_node: Counter[str] = field(init=False, default_factory=Counter)
    bytes_read: int = field(init=False, default=0)
    cpu_s: float = field(init=False, default=0.0)
    _row_next: dict[int, int] = field(init=False)
    _columns_left: set[int] = field(init=False)
    _stem_frames: dict[int, int] = field(init=False, default_factory=dict)
    _measured: int = field(init=False, default=0)
    _writer: MixWriter | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        fmt, cells = self.plan.format, self.plan.cells
        self._bus = MixBus(self.bus_fd, fmt)
        self._meter = LoudnessMeter(fmt.sample_rate, fmt.channels, 2.0**fmt.bits)
        self._row_next = {i: 0 for i, cell in enumerate(cells) if cell.window is None}
        self._columns_left = {cell.window for cell in cells if cell.window is not None}
        self._likely = likely_level(self.spec, len(self.plan.parts))
        if self._likely is not None and self.plan.frames is not None:
            self._writer = self._open_writer(self._likely, self.plan.frames)

    def take(self, cell: int, output: CellOutput) -> None:
        """Take in one thing that cell number `cell` yielded."""
        if isinstance(output, CellEnd):
            self._stem_frames.update(output.frames)
            self._row_next.pop(cell, None)
            self.cells_by_node[output.node] += 1
            self.bytes_read += output.bytes_read
            self.cpu_s += output.cpu_s
        else:
            index, window = output
            self._bus.add(index, window)
            if cell in self._row_next:
                self._row_next[cell] = index + 1
            else:
                self._columns_left.discard(index)
        self._measure_what_is_complete()

    def finish(self) -> Mixdown:
        """All cells are done: find the level, encode, and say what came of it.

        Raises:
            JobError: invalid_message, if not one frame is in the mix.
            OSError: the file cannot be written.
        """
        frames, fmt = self._bus.frames, self.plan.format
        if frames <= 0:
            raise JobError(
                ErrorCode.INVALID_MESSAGE,
                "Nothing is left to hear: every stem ends before the mix.",
            )
        while self._measured < frames:
            self._measure_window()
        loudness = self._meter.result()
        level = level_of(self.spec, len(self.plan.parts), loudness)
        if self._writer is None or level != self._likely:
            self._start_over()
            self._writer = self._open_writer(level, frames)
            for index in range(-(-frames // fmt.window_frames)):
                self._write(self._bus.window(index))
        written = self._writer.finish()
        return Mixdown(
            frames=frames,
            duration=frames / fmt.sample_rate,
            sample_rate=fmt.sample_rate,
            channels=fmt.channels,
            gain=level.gain,
            peak=written.sample_peak,
            peaks=written.peaks,
            facts=self._facts(frames, loudness, level, written),
        )

    def close(self) -> None:
        """Give up what is open; `out_fd` has no usable content unless `finish` returned."""
        if self._writer is not None:
            self._writer.close()

    def _start_over(self) -> None:
        """What was encoded at the likely level is too loud."""
        if self._writer is not None:
            self.written(0)
            self._writer.close()
            os.ftruncate(self.out_fd, 0)
            os.lseek(self.out_fd, 0, os.SEEK_SET)

    def _measure_what_is_complete(self) -> None:
        """Windows are measured, and encoded at the likely level, in order of time."""
        size, rows = self.plan.format.window_frames, min(self._row_next.values(), default=None)
        while (window := self._measured // size) not in self._columns_left:
            whole = (window + 1) * size <= self._bus.frames
            if not whole or (rows is not None and window >= rows):
                break
            self._measure_window()

    def _measure_window(self) -> None:
        window = self._bus.window(self._measured // self.plan.format.window_frames)
        self._meter.add(window)
        if self._writer is not None:
            self._write(window)
        self._measured += len(window)
        self.progress(self._measured, max(self.plan.frames or 0, self._bus.frames))

    def _write(self, window: Window) -> None:
        assert self._writer is not None
        self._writer.add(window)
        self.written(self._writer.written)

    def _open_writer(self, level: Level, frames: int) -> MixWriter:
        spec, fmt = self.spec, self.plan.format
        return MixWriter(
            self.out_fd,
            encoding_of(spec),
            sample_rate=fmt.sample_rate,
            channels=fmt.channels,
            frames=frames,
            factor=level.gain / 2.0**fmt.bits,
            ceiling=level.ceiling,
            num_peaks=self.num_peaks,
            title=self.title,
            seed=self.seed,
        )

    def _facts(
        self, frames: int, loudness: Loudness, level: Level, written: Written
    ) -> dict[str, Any]:
        fmt, gain = self.plan.format, level.gain
        return {
            "duration": frames / fmt.sample_rate,
            "sample_rate": fmt.sample_rate,
            "channels": fmt.channels,
            "integrated_lufs": _rounded(loudness.integrated_lufs(gain)),
            "true_peak_dbtp": _rounded(to_db(loudness.true_peak * gain)),
            "sample_peak_dbfs": _rounded(to_db(loudness.sample_peak * gain)),
            "applied_gain_db": _rounded(to_db(gain)),
            "limited_by_true_peak_db": _rounded(level.limited_db),
            "clipped_samples": written.clipped_samples,
            "clipped_by_db": _rounded(written.over_db),
        }

    def stem_facts(self, stems: Sequence[StemInfo]) -> list[dict[str, Any]]:
        """What was learned of the stems; a duration that only decoding tells is None for
        those that were not heard."""
        found = []
        for index, stem in enumerate(stems):
            frames = self._stem_frames.get(index, stem.frames)
            found.append(
                {
                    "path": stem.name,
                    "sample_rate": stem.sample_rate,
                    "channels": stem.channels,
                    "duration": None if frames is None else frames / stem.sample_rate,
                }
            )
        return found


def encoding_of(spec: MixSpec) -> Encoding:
    """How the file of a mix is encoded."""
    return Encoding(spec.output_format, spec.bit_depth or 16, spec.dither)


def stem_info(reader: AudioReader, name: str, size: int, head: bytes, version: str) -> StemInfo:
    """What the first bytes of a stem tell.

    Args:
        reader: of as much of the file as is at hand.
        head: the first bytes of the file.
        size: of the whole file, in bytes.
    """
    layout = pcm_layout(head, size)
    # RFC 9639: the number of frames is in the first block of a FLAC.
    exact = reader.claimed_frames if reader.container == "FLAC" else 0
    return StemInfo(
        name=name,
        size=size,
        sample_rate=reader.sample_rate,
        channels=reader.channels,
        frames=layout.frames if layout else exact or None,
        layout=layout,
        version=version,
    )


class LocalFiles:
    """Stems that are files of this machine."""

    def read(self, stem: StemInfo, start: int, stop: int) -> bytes:
        with open(stem.name, "rb") as file:
            return os.pread(file.fileno(), stop - start, start)

    @contextmanager
    def open(self, stems: Sequence[StemInfo]) -> Iterator[list[AudioReader]]:
        with ExitStack() as stack:
            yield [stack.enter_context(open_audio(s.name, name=s.name)) for s in stems]


def plan_files(spec: MixSpec, parallelism: int = 1) -> MixPlan:
    """The plan of a mix of local files.

    Raises:
        JobError: as `open_audio` and `plan_mix`.
        OSError: a file cannot be read.
    """
    return plan_mix(spec, _probe_files(spec), parallelism)


def mix_files(
    spec: MixSpec,
    out_path: str | Path,
    *,
    title: str | None = None,
    progress: Progress = lambda _done, _of: None,
) -> Mixdown:
    """Mix local files, in this process.

    Raises:
        JobError: truncated_audio, and as `open_audio` and `plan_mix`; the message names the
            file.
        OSError: a file cannot be read or written.
    """
    out = Path(out_path)
    stems = _probe_files(spec)
    plan = plan_mix(spec, stems, parallelism=1)
    # Only a whole mix gets its name; it may even be that of one of the stems.
    partial = out.with_name(f"{out.name}.part")
    with ExitStack() as stack:
        bus_fd = open_scratch(out.parent)
        stack.callback(os.close, bus_fd)
        out_fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        stack.callback(os.close, out_fd)
        stack.callback(partial.unlink, missing_ok=True)
        mixer = Mixer(spec, plan, bus_fd, out_fd, title, progress=progress)
        stack.callback(mixer.close)
        for index, cell in enumerate(plan.cells):
            for output in cell_windows(cell, LocalFiles()):
                mixer.take(index, output)
        mixdown = mixer.finish()
        mixdown.facts["stems"] = mixer.stem_facts(stems)
        partial.replace(out)
    return mixdown


def _probe_files(spec: MixSpec) -> list[StemInfo]:
    stems = []
    for wish in spec.stems:
        with open_audio(wish.path, name=wish.path) as reader, open(wish.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            stems.append(stem_info(reader, wish.path, size, file.read(HEAD_BYTES), ""))
    return stems


def _rounded(decibels: float | None) -> float | None:
    return None if decibels is None else round(decibels, 2) + 0.0

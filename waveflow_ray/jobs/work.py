"""What every job has at hand: settings, the bucket, a stopwatch by stage, scratch files."""

from __future__ import annotations

import faulthandler
import os
import platform
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from waveflow_ray.audio.scratch import open_scratch
from waveflow_ray.aws.copies import Copies
from waveflow_ray.aws.s3 import Bucket, bucket_of
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.outcomes import Usage
from waveflow_ray.settings import Settings

HARD_STOP_GRACE_S = 10.0
RING_AGAIN_S = 0.5
STDERR = 2


class TimeUp(BaseException):
    """The time limit of a job passed. Not an Exception, so that no library swallows it."""


class Work:
    """The means of one attempt at one job, and the record of what it used."""

    def __init__(self, settings: Settings, bucket: Bucket | None = None) -> None:
        self.settings = settings
        self.bucket = bucket or bucket_of(settings)
        self.copies = copies_of(settings, self.bucket)
        self.seconds: dict[str, float] = {}
        self.bytes_in = 0
        self.bytes_out = 0
        self.audio_s = 0.0
        self.cpu_s = 0.0  # of other processes that worked for this one
        # Light jobs share a process, each in a thread of its own.
        self._alone = threading.current_thread() is threading.main_thread()
        self._cpu_clock = time.process_time if self._alone else time.thread_time
        self._cpu_began = self._cpu_clock()
        self.notes: dict[str, Any] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time spent inside is added to the stage: download, work or upload."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    @contextmanager
    def scratch(self) -> Iterator[int]:
        """A file descriptor of an anonymous file: gone with the process, however it ends."""
        fd = open_scratch(self.settings.scratch_dir)
        try:
            yield fd
        finally:
            os.close(fd)

    def usage(self) -> Usage:
        """What the attempt used so far."""
        return Usage(
            seconds=self.seconds,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            audio_s=self.audio_s,
            peak_memory_mb=peak_memory_mb() if self._alone else highest_memory_mb(),
            node=platform.node(),
            cpu_s=self.cpu_s + self._cpu_clock() - self._cpu_began,
        )


def copies_of(settings: Settings, bucket: Bucket) -> Copies:
    """The index of known copies; marks in it count as long as a job can run."""
    return Copies(bucket, settings.job_timeout_s + 2 * HARD_STOP_GRACE_S)


@contextmanager
def time_limit(seconds: float, hard: bool = False) -> Iterator[None]:
    """Raise `TimeUp` in the main thread after `seconds`.

    Args:
        seconds: of wall time.
        hard: a decoder that hangs inside C never sees the exception; then, a little later, the
            process writes where it hangs to its log and ends, which costs this job alone. For
            worker processes only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    if hard:
        faulthandler.dump_traceback_later(seconds + HARD_STOP_GRACE_S, exit=True, file=STDERR)
    # Again and again: where it is raised in a destructor, Python only prints it.
    signal.setitimer(signal.ITIMER_REAL, seconds, RING_AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if hard:
            faulthandler.cancel_dump_traceback_later()


def too_much_memory(settings: Settings, detail: str = "") -> JobError:
    """The error of a job that asked for more than `memory_limit` permits."""
    return JobError(
        ErrorCode.UNDECODABLE_AUDIO,
        f"The file takes more than {settings.job_memory_mb} MB of memory to process.",
        detail,
    )


@contextmanager
def memory_limit(megabytes: float) -> Iterator[None]:
    """No more address space for this process than it has now and so many MB (Linux).

    What asks for more gets a MemoryError; a library that cannot bear that ends its process.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        yield
        return
    most = pages * resource.getpagesize() + int(megabytes * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def reset_peak_memory() -> None:
    """Make `peak_memory_mb` count from now on, where the kernel lets us (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Highest resident memory of this process since `reset_peak_memory`, in MB."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return highest_memory_mb()


def highest_memory_mb() -> float:
    """Highest resident memory of this process since its start, in MB; it costs less to ask for."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)

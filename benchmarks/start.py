"""How long things take to start."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import ray

from benchmarks import inputs
from benchmarks.audio import WAVEFLOW
from benchmarks.service import Running, running
from benchmarks.timing import Figure, Report, command, seconds
from waveflow_ray.messages import AnalysisJob
from waveflow_ray.runtime.placement import ACTOR

JOBS = 10
STEM_S = 10
WARM_UP_S = 5.0
"""Until workers are ready, which are started when the service is."""

IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def imported(module: str, runs: int) -> float:
    """Seconds of an import, the median of fresh processes after one that does not count."""
    call = [sys.executable, "-c", IMPORT.format(module)]
    times = [
        float(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
        for _ in range(runs + 1)
    ]
    return statistics.median(times[1:])


def first_and_last(service: Running, key: str) -> tuple[float, float]:
    """Seconds of the first analysis of a worker, and of its tenth."""
    times = []
    for number in range(JOBS):
        started = time.perf_counter()
        service.job(AnalysisJob, "stemId", f"start-{number}", filepath=key)
        times.append(time.perf_counter() - started)
    return times[0], times[-1]


class Empty:
    """An actor that does nothing: what Ray takes to start one."""

    async def ready(self) -> None:
        pass


def empty_actors(count: int) -> float:
    """Seconds until so many are up, all started at once."""
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        started = time.perf_counter()
        actors = [ray.remote(**ACTOR)(Empty).remote() for _ in range(count)]
        ray.get([actor.ready.remote() for actor in actors])
        return time.perf_counter() - started
    finally:
        ray.shutdown()


def measure(folder: Path, runs: int) -> Report:
    """Imports, commands, the service, a worker."""
    help_s = [seconds(command(WAVEFLOW, "--help")) for _ in range(runs + 1)][1:]
    ready_s, first_s, early_s = [], [], []
    for pause_s in (0.0, WARM_UP_S) * runs:
        with running(num_cpus=2) as service:
            ready_s.append(service.ready_s)
            (key,) = service.upload(inputs.stems(folder, 1, STEM_S, "wav", "PCM_16"))
            time.sleep(pause_s)
            first, tenth = first_and_last(service, key)
            (first_s if pause_s else early_s).append(first - tenth)
    empty_s = [empty_actors(3) for _ in range(runs)]
    figures = [
        Figure("import waveflow_ray", imported("waveflow_ray", runs), "s", 0.3),
        Figure("waveflow --help", statistics.median(help_s), "s", 0.5),
        Figure("ready after ray.init", statistics.median(ready_s), "s", 2.0),
        Figure("Ray alone: three empty actors after ray.init", statistics.median(empty_s), "s"),
        Figure("a worker's first job, slower than its tenth", statistics.median(first_s), "s", 0.5),
        Figure("the same at once after the start", statistics.median(early_s), "s"),
    ]
    return Report("Start", {}, figures, {"Ray": ray.__version__})

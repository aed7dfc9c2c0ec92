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

JOBS = 10
STEM_S = 10

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


def measure(folder: Path, runs: int) -> Report:
    """Imports, commands, the service, a worker."""
    help_s = [seconds(command(WAVEFLOW, "--help")) for _ in range(runs + 1)][1:]
    ready_s, first_s = [], []
    for _ in range(runs):
        with running(num_cpus=1) as service:
            ready_s.append(service.ready_s)
            (key,) = service.upload(inputs.stems(folder, 1, STEM_S, "wav", "PCM_16"))
            first, tenth = first_and_last(service, key)
            first_s.append(first - tenth)
    figures = [
        Figure("import waveflow_ray", imported("waveflow_ray", runs), "s", 0.3),
        Figure("waveflow --help", statistics.median(help_s), "s", 0.5),
        Figure("ready after ray.init", statistics.median(ready_s), "s", 2.0),
        Figure("a worker's first job, slower than its tenth", statistics.median(first_s), "s", 0.5),
    ]
    return Report("Start", {}, figures, {"Ray": ray.__version__})

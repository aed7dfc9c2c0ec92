"""Throughput of many nodes: `python -m benchmarks.scale --help`.

Everything is real but the work and the nodes: SQS, leases, Ray tasks, reporters, webhooks. A job
waits for as long as it is said to take, and the nodes are logical CPUs of one Ray, whose
workers are processes of this machine. So what bends the line is what does not grow with nodes: the
ingress, the reporters, Ray's GCS, and here also that all of it shares the cores of one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import ray

from benchmarks.receiver import Receiver, receiver
from benchmarks.service import Store, store
from benchmarks.timing import machine
from waveflow_ray.aws.sqs import BATCH, Queue
from waveflow_ray.messages import AnalysisJob, HashJob, Job, envelope
from waveflow_ray.outcomes import Outcome, success
from waveflow_ray.runtime.actors import IngressActor
from waveflow_ray.runtime.environment import ray_environment
from waveflow_ray.runtime.executor import RayExecutor
from waveflow_ray.runtime.handles import reporter_names
from waveflow_ray.runtime.placement import ACTOR, HEAVY
from waveflow_ray.runtime.reporter import ReporterActor
from waveflow_ray.settings import Settings

NODES = (2, 8, 32, 64)
PER_NODE = 2
"""Heavy jobs at a time on a node of 2 vCPU."""
SECONDS = 2.0
"""A mix of 8 stems of 4 minutes; `--seconds` is for other work."""
RUN_S = 15.0
RUN_JOBS = 10
"""Of each worker, at least."""
WAITING = 400
"""Messages in the queue: moto takes longer for each the more there are."""
NAMESPACE = "scale"
HASH_RESULT = {"audio_hash": "ab" * 32, "known_copies": []}
ANALYSIS_RESULT = {
    "audio_data_hash": "ab" * 32,
    "waveform_data_path": "w",
    "file_size": 1,
    "duration": 1.0,
    "sample_rate": 1,
    "num_peaks": 1,
}


def wait(job: Job, seconds: float) -> Outcome:
    """Takes as long as work, and no CPU."""
    time.sleep(seconds)
    result = HASH_RESULT if isinstance(job, HashJob) else ANALYSIS_RESULT
    return Outcome("SUCCESS", success(job, result, seconds), kept=True)


class Waiting(RayExecutor):
    """Has jobs waited for instead of done."""

    def __init__(self, settings: Settings, seconds: float) -> None:
        super().__init__(settings)
        self._seconds = seconds
        self._task: Any = ray.remote(**{**HEAVY, "memory": 0, "num_cpus": 1})(wait)

    async def run(self, job: Job, *, again: bool) -> Outcome:
        done: Outcome = await self._task.options(name=job.kind).remote(job, self._seconds)
        return done


class WaitingIngress(IngressActor):
    """The ingress, with another executor."""

    async def __init__(self, settings: Settings, seconds: float) -> None:  # type: ignore[misc] # Ray awaits it
        await super().__init__(settings, NAMESPACE)  # type: ignore[misc] # as above
        self._executor = self._ingress.executor = Waiting(settings, seconds)


@dataclass
class Row:
    """What so many nodes did."""

    nodes: int
    jobs_per_s: float
    of_linear: float
    ingress_ms: float
    reporters_ms: float
    ray_ms: float
    """CPU of the GCS and the raylet, for each job."""
    workers_ms: float
    """Of the processes that wait in place of the nodes: on them, it would be elsewhere."""
    busy: float
    """Part of this machine's CPU that was used."""


def throughput(aws: Store, hooks: Receiver, nodes: int, seconds: float) -> Row:
    """Keep so many nodes busy for a while."""
    queue = aws.queue(f"scale-{nodes}")
    settings = aws.settings(
        queue.url,
        hooks.url,
        max_in_flight=min(2000, 6 * PER_NODE * nodes + 40),
        visibility_timeout_s=120,
    )
    cpus = nodes * PER_NODE
    os.environ.update(ray_environment(cpus, settings.reporters + 1))
    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        namespace=NAMESPACE,
    )
    stop = threading.Event()
    try:
        reporters = [
            ray.remote(**ACTOR)(ReporterActor)
            .options(name=name)
            .remote(settings, settings.fingerprint)
            for name in reporter_names(settings)
        ]
        ingress: Any = ray.remote(**ACTOR)(WaitingIngress).remote(settings, seconds)
        feeder = threading.Thread(target=_feed, args=(queue, nodes, cpus / seconds, stop))
        feeder.start()
        _settle(hooks, cpus, seconds)
        before, at = _cpu(), time.time()
        busy = psutil.cpu_times()
        done = len(hooks.came())
        time.sleep(max(RUN_S, RUN_JOBS * seconds))
        jobs, passed = len(hooks.came()) - done, time.time() - at
        after, busy_after = _cpu(), psutil.cpu_times()
        del reporters, ingress
    finally:
        stop.set()
        feeder.join()
        ray.shutdown()
    used = {name: 1000 * (after[name] - before[name]) / max(1, jobs) for name in after}
    idle = busy_after.idle - busy.idle
    return Row(
        nodes,
        jobs / passed,
        jobs / passed / (cpus / seconds),
        used["ingress"],
        used["reporters"],
        used["ray"],
        used["workers"],
        1 - idle / passed / (psutil.cpu_count() or 1),
    )


def _settle(hooks: Receiver, cpus: int, seconds: float) -> None:
    """Wait until every worker has been at work, which takes its start."""
    start = len(hooks.came())
    jobs = max(3.0, RUN_S / seconds) * cpus
    deadline = time.monotonic() + 60.0 + 2.0 * cpus
    while len(hooks.came()) - start < jobs and time.monotonic() < deadline:
        time.sleep(0.5)


def _feed(queue: Queue, nodes: int, rate: float, stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        if queue.facts().visible > max(WAITING, 2 * rate):
            time.sleep(0.05)
            continue
        for _ in range(max(1, int(rate / 4 / BATCH))):
            entries = []
            for n in range(BATCH):
                kind = (HashJob, AnalysisJob)[number % 2]
                stem = f"n{nodes}-{number}"
                number += 1
                body = envelope(kind, stem, stemId=stem, filepath="a.wav")
                entries.append({"Id": str(n), "MessageBody": body})
            queue.client.send_message_batch(QueueUrl=queue.url, Entries=entries)  # type: ignore[arg-type] # plain dicts


def _cpu() -> dict[str, float]:
    """CPU seconds so far."""
    used = {"ingress": 0.0, "reporters": 0.0, "ray": 0.0, "workers": 0.0}
    titles = {"ray::WaitingIngr": "ingress", "ray::ReporterAct": "reporters"}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            times = process.cpu_times()
        except psutil.Error:
            continue
        if title.startswith("ray::"):
            name = next((name for start, name in titles.items() if title.startswith(start)), None)
            used[name or "workers"] += times.user + times.system
        if "gcs_server" in title or "raylet/raylet" in title.split(" ")[0]:
            used["ray"] += times.user + times.system
    return used


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description="Throughput of simulated nodes of 2 vCPU: logical CPUs, whose jobs wait. S3 "
        "and SQS are those of AWS_ENDPOINT_URL, else moto's, which is too slow for many nodes. 64 "
        "nodes are 128 worker processes: some 12 GB.",
        epilog="Example: python -m benchmarks.scale --nodes 2 8 32 --seconds 0.18",
    )
    parser.add_argument("--nodes", type=int, nargs="*", default=NODES)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of a job ({SECONDS})")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for nodes in options.nodes:
        with store() as aws, receiver() as hooks:
            rows.append(throughput(aws, hooks, nodes, options.seconds))
            backend = aws.backend
        print(rows[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return 0
    print(f"{machine()}; S3 and SQS: {backend}; jobs of {options.seconds:g} s\n")
    heads = (
        "nodes",
        "jobs/s",
        "of linear",
        "ingress",
        "reporters",
        "GCS and raylet",
        "workers",
        "busy",
    )
    print(f"CPU in ms for each job\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for r in rows:
        print(
            f"| {r.nodes} | {r.jobs_per_s:.0f} | {r.of_linear:.2f} | {r.ingress_ms:.2f} | "
            f"{r.reporters_ms:.2f} | {r.ray_ms:.2f} | "
            f"{r.workers_ms:.2f} | {r.busy:.0%} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

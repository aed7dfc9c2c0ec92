"""CPU and latency of jobs, beside a consumer as tutorials write it: `python -m benchmarks.jobs`."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray

from benchmarks.ingress import ingress_rates
from benchmarks.receiver import Receiver, receiver
from benchmarks.service import Store, store
from benchmarks.timing import Comparison, Figure, Report
from tests.support import encoded, music, service
from waveflow_ray.aws.sqs import BATCH, Queue
from waveflow_ray.local.aws import REGION
from waveflow_ray.messages import AnalysisJob, HashJob, envelope

KINDS = {"hash": (HashJob, 1.0), "analysis": (AnalysisJob, 240.0)}
"""The job, and how long its files are (s)."""
TARGETS = {"hash": 1 / 3, "analysis": 1 / 5}
"""Our share of a plain consumer's CPU."""
WARM_UP = 50
BEHIND = 200
IDLE_PAUSE_S = {"hash": 0.3, "analysis": 1.0}


@dataclass
class Bench:
    """What is measured: a queue for each of the two, one bucket, one receiver."""

    aws: Store
    hooks: Receiver
    queues: dict[str, Queue] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def prepared(self, kind: str, count: int) -> dict[str, str]:
        """Messages by stem, each about an object of its own, which is there then."""
        job, seconds = KINDS[kind]
        bodies: dict[str, str] = {}
        for _ in range(count):
            number = next(self._numbers)
            key, stem = self._upload(kind, number, seconds), f"{kind}-{number}"
            bodies[stem] = envelope(job, stem, stemId=stem, filepath=key)
        return bodies

    def send(self, who: str, bodies: dict[str, str]) -> None:
        texts = list(bodies.values())
        for start in range(0, len(texts), BATCH):
            self.queues[who].client.send_message_batch(
                QueueUrl=self.queues[who].url,
                Entries=[
                    {"Id": str(n), "MessageBody": text}
                    for n, text in enumerate(texts[start : start + BATCH])
                ],
            )

    def _upload(self, kind: str, number: int, seconds: float) -> str:
        content = _sound(seconds)
        if kind == "hash":  # no two files are the same
            content = content[:-8] + number.to_bytes(8, "little")
        key = f"bench/{kind}-{number if kind == 'hash' else number % 4}.wav"
        self.aws.bucket.put(key, content, "audio/wav")
        return key

    def empty(self, who: str) -> bool:
        facts = self.queues[who].facts()
        return facts.visible == facts.in_flight == 0


_sounds: dict[float, bytes] = {}


def _sound(seconds: float) -> bytes:
    if seconds not in _sounds:
        _sounds[seconds] = encoded(music(seconds))
    return _sounds[seconds]


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds that a process and all below it have used so far; ended ones count."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
        except psutil.Error:
            continue
    return total


def block(bench: Bench, who: str, process: psutil.Process, kind: str, count: int) -> float:
    """CPU seconds per 1,000 jobs, from the first message to the last one's deletion."""
    bodies = bench.prepared(kind, count)
    before = cpu_of(process)
    bench.send(who, bodies)
    bench.hooks.wait_for(set(bodies))
    while not bench.empty(who):
        time.sleep(0.05)
    return (cpu_of(process) - before) / count * 1000


def cpu(
    bench: Bench, processes: dict[str, psutil.Process], kind: str, count: int, runs: int
) -> Comparison:
    """Blocks of jobs in turn, after one of each that does not count."""
    for who, process in processes.items():
        block(bench, who, process, kind, min(count, WARM_UP))
    pairs = [
        [block(bench, who, process, kind, count) for who, process in processes.items()]
        for _ in range(runs)
    ]
    ours, theirs = zip(*pairs, strict=True)
    name = f"{kind} of a {KINDS[kind][1]:g} s WAV"
    return Comparison(name, "a plain consumer", [*ours], [*theirs], TARGETS[kind])


def latency(
    bench: Bench,
    name: str,
    kind: str,
    samples: int,
    p50: float,
    p99: float | None = None,
) -> list[Figure]:
    """One job after the other, at a pace that leaves an idle service idle between them."""
    sent: dict[str, float] = {}
    for _ in range(samples):
        bodies = bench.prepared(kind, 1)
        sent |= dict.fromkeys(bodies, time.time())
        bench.send("ours", bodies)
        time.sleep(IDLE_PAUSE_S[kind])
    came = bench.hooks.wait_for(set(sent))
    times_ms = sorted(1000 * (came[stem] - when) for stem, when in sent.items())
    nearly_all = times_ms[min(len(times_ms) - 1, len(times_ms) * 99 // 100)]
    return [
        Figure(f"{name}, p50 of {samples}", statistics.median(times_ms), "ms", p50),
        Figure(f"{name}, p99", nearly_all, "ms", p99),
    ]


def latencies(bench: Bench, samples: int) -> list[Figure]:
    """From the message sent to the webhook received."""
    seconds = KINDS["analysis"][1]
    found = latency(bench, "idle: hash", "hash", samples, 40.0, 200.0)
    found += latency(
        bench, f"idle: analysis of a {seconds:g} s WAV", "analysis", samples // 3, 350.0
    )
    waiting = bench.prepared("analysis", BEHIND)
    bench.send("ours", waiting)
    found += latency(bench, f"behind {BEHIND} analyses: hash", "hash", samples, 1000.0)
    bench.hooks.wait_for(set(waiting))
    return found


@contextmanager
def both(runs_dir: Path) -> Iterator[tuple[Bench, dict[str, psutil.Process]]]:
    """The service and the plain consumer, each at a queue of its own."""
    with ExitStack() as stack:
        bench = Bench(stack.enter_context(store()), stack.enter_context(receiver()))
        bench.queues = {who: bench.aws.queue(who) for who in ("ours", "theirs")}
        env = {
            "AWS_ENDPOINT_URL": bench.aws.endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "S3_BUCKET_NAME": bench.aws.name,
            "WEBHOOK_URL": bench.hooks.url,
            "POLL_WAIT_S": "10",
            "VISIBILITY_TIMEOUT_S": "90",
        }
        ours = stack.enter_context(
            service(env | {"SQS_QUEUE_URL": bench.queues["ours"].url}, runs_dir)
        )
        theirs = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.plain"],
            env=os.environ | env | {"SQS_QUEUE_URL": bench.queues["theirs"].url},
        )
        stack.callback(theirs.wait)
        stack.callback(theirs.terminate)
        yield (
            bench,
            {
                "ours": psutil.Process(ours.process.pid),
                "theirs": psutil.Process(theirs.pid),
            },
        )


def measure(
    kinds: Sequence[str], counts: dict[str, int], runs: int, samples: int, ingress: int
) -> Report:
    """CPU for a job, latencies, and what one ingress can do. Any of the numbers may be 0."""
    rows: list[Comparison] = []
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder, both(Path(folder)) as (bench, processes):
        backend = bench.aws.backend
        for kind in kinds:
            rows.append(cpu(bench, processes, kind, counts[kind], runs))
        if "analysis" in kinds:
            each_s = statistics.median(rows[-1].ours_s) / 1000
            figures.append(Figure("CPU of an analysis, all processes", each_s, "s", 0.12))
        if samples:
            figures += latencies(bench, samples)
    if ingress:
        figures += ingress_rates(ingress)
    if backend == "moto":
        backend += ", whose SQS is the limit of rates and latencies here"
    return Report(
        "Jobs",
        {"CPU seconds of all processes, for 1,000 jobs": rows},
        figures,
        {"S3 and SQS": backend, "Ray": ray.__version__},
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="CPU of all processes of the service for each job, beside a plain consumer; "
        "latency; what one ingress can do. S3 and SQS are those of AWS_ENDPOINT_URL, else moto's, "
        "which then is the limit of what is measured; its CPU and the receiver's do not count.",
        epilog="Example: python -m benchmarks.jobs --kinds hash --runs 7",
    )
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--jobs", type=int, default=500, help="hash jobs in a block (500)")
    parser.add_argument("--analyses", type=int, default=20, help="analyses in a block (20)")
    parser.add_argument("--runs", type=int, default=5, help="pairs of blocks (5)")
    parser.add_argument("--samples", type=int, default=60, help="latencies (60); 0 for none")
    parser.add_argument("--ingress", type=int, default=3000, help="no-op jobs (3000); 0 for none")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts = {"hash": options.jobs, "analysis": options.analyses}
    found = measure(options.kinds, counts, options.runs, options.samples, options.ingress)
    print(json.dumps(found.as_dict(), indent=2) if options.json else found.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())

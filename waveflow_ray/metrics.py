"""What the service counts and measures: one table of all metrics, and where they are collected.

No Ray in here: `runtime/exporter.py` hands them to Ray, which serves them to Prometheus with
``ray_`` before each name. docs/operations.md explains them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from waveflow_ray import __version__
from waveflow_ray.errors import RETRYABLE, ErrorCode
from waveflow_ray.messages import Kind
from waveflow_ray.outcomes import COMPLETION, HASH_CHECK, MIXING_COMPLETE, Outcome, Status, Usage

Values = tuple[str, ...]
Labels = tuple[str, ...]
Key = tuple["Metric", Labels]

KINDS: Values = get_args(Kind)
STATUSES: Values = get_args(Status)
CODES: Values = tuple(ErrorCode)
STAGES: Values = ("queue", "download", "work", "upload", "webhook")
STARTS_AT_ZERO = 20

SHORT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
LONG_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
MEMORY_BYTES = tuple(m * 2**20 for m in (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096))


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric.

    Attributes:
        unit: what it is in; seconds and bytes, never their multiples.
        labels: every label with all values that it can have. There are few, on purpose: no ids,
            names of files or addresses, because a time series is kept for each.
        bounds: upper bounds of a histogram's buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: dict[str, Values]
    meaning: str
    bounds: tuple[float, ...] = ()

    @property
    def starts_at_zero(self) -> bool:
        """Whether a counter is exported before anything happened.

        Else Prometheus, which sees differences, would miss the first event.
        """
        series = prod(len(values) for values in self.labels.values())
        return self.kind == "counter" and series <= STARTS_AT_ZERO


TABLE: list[Metric] = []


def _counter(name: str, unit: str, meaning: str, **labels: Values) -> Metric:
    TABLE.append(Metric(f"waveflow_{name}_total", "counter", unit, labels, meaning))
    return TABLE[-1]


def _gauge(name: str, unit: str, meaning: str, **labels: Values) -> Metric:
    TABLE.append(Metric(f"waveflow_{name}", "gauge", unit, labels, meaning))
    return TABLE[-1]


def _histogram(
    name: str, unit: str, bounds: tuple[float, ...], meaning: str, **labels: Values
) -> Metric:
    TABLE.append(Metric(f"waveflow_{name}", "histogram", unit, labels, meaning, bounds))
    return TABLE[-1]


# A table is easier to read with one metric after the other.
# fmt: off

JOBS = _counter("jobs", "jobs", "jobs that ended", kind=KINDS, outcome=STATUSES)
FAILURES = _counter("failures", "jobs", "jobs that ended as `FAILURE`, by error code",
                    kind=KINDS, code=CODES)
RETRIES = _counter("retries", "attempts", "attempts that met a transient fault; tried again later",
                   kind=KINDS, code=tuple(sorted(RETRYABLE)))
JOB_SECONDS = _histogram("job_seconds", "seconds", LONG_S,
                         "from sending the message to the end of the job, its webhook delivered",
                         kind=KINDS)
STAGE_SECONDS = _histogram("stage_seconds", "seconds", SHORT_S,
                           "the stages of an attempt, as `seconds` in its log line",
                           kind=KINDS, stage=STAGES)
CPU_SECONDS = _counter("cpu_seconds", "seconds", "CPU time of attempts; of a mix, with its cells",
                       kind=KINDS)
AUDIO_SECONDS = _counter("audio_seconds", "seconds", "audio that was analysed or mixed", kind=KINDS)
READ_BYTES = _counter("read_bytes", "bytes", "read from S3", kind=KINDS)
WRITTEN_BYTES = _counter("written_bytes", "bytes", "written to S3", kind=KINDS)
PEAK_MEMORY = _histogram("peak_memory_bytes", "bytes", MEMORY_BYTES,
                         "most resident memory of the process that did an attempt", kind=KINDS)

IN_HAND = _gauge("jobs_in_hand", "jobs", "jobs that are leased, by [stage](#life-of-a-job)",
                 kind=KINDS, stage=("waiting", "running", "pausing", "reporting"))
OLDEST_AGE = _gauge("oldest_job_age_seconds", "seconds",
                    "age of the oldest job in hand, from when its message was sent; 0 without jobs")
SLOTS = _gauge("slots", "jobs", "jobs that are worked on at a time ([capacity](#capacity))",
               size=("light", "heavy"))
CPUS_WANTED = _gauge("cpus_wanted", "CPUs",
                     "CPUs that end the backlog within TARGET_LATENCY_S; asked of the autoscaler")
NODES = _gauge("nodes", "nodes", "Ray nodes that are alive",
               type=("head", "spot", "ondemand", "other"))

QUEUE_MESSAGES = _gauge("queue_messages", "messages",
                        "depth of the job queue, as SQS reckons it; asked every 10 s",
                        state=("visible", "in_flight", "delayed"))
DEAD_LETTERS = _gauge("dead_letters", "messages",
                      "depth of the dead-letter queue; asked every 60 s")
DEAD_LETTERS_WRITTEN = _counter("dead_letters_written", "messages",
                                "put there by the service; SQS moves some by itself",
                                code=(*CODES, "webhook_refused", "webhook_undelivered"))
LEASE_RENEWALS = _counter("lease_renewals", "messages",
                          "renewals of leases; `failed`: SQS did not answer",
                          result=("renewed", "lost", "failed"))
LEASES_LOST = _counter("leases_lost", "jobs", "jobs whose lease was lost: others may have them",
                       kind=KINDS)

WEBHOOKS = _counter("webhooks", "attempts",
                    "webhooks sent, repetitions too, by what came back; `none`: no answer",
                    path=(HASH_CHECK, COMPLETION, MIXING_COMPLETE),
                    status=("2xx", "3xx", "4xx", "5xx", "none"),
                    verdict=("delivered", "away", "fault", "refused"))
SERVER_AWAY = _gauge("main_server_away", "0 or 1",
                     "1 while the main server is away, and intake is paused")

START_TIME = _gauge("ingress_start_time_seconds", "seconds",
                    "when the ingress began, since 1970; another one after each restart")
BUILD_INFO = _gauge("build_info", "1", "always 1; tells the version", version=(__version__,))

# fmt: on


@dataclass
class Distribution:
    """What a histogram saw.

    Attributes:
        buckets: values per bucket; the last one is for what is beyond all bounds.
        total: sum of all values.
    """

    buckets: list[int]
    total: float = 0.0


class Metrics:
    """Collects what happens in plain dicts, which costs next to nothing. Lives in one event loop.

    Attributes:
        added: what came to each counter since the last `take_added`.
        seen: of each histogram, all since the beginning.
        levels: of each gauge, where it stands.
    """

    def __init__(self) -> None:
        self.added: defaultdict[Key, float] = defaultdict(float)
        self.seen: dict[Key, Distribution] = {}
        self.levels: dict[Key, float] = {}

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Something is to be added to a counter."""
        self.added[metric, labels] += amount

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """A value for a histogram."""
        key = metric, labels
        distribution = self.seen.get(key)
        if distribution is None:
            self.seen[key] = distribution = Distribution([0] * (len(metric.bounds) + 1))
        distribution.buckets[bisect_left(metric.bounds, value)] += 1
        distribution.total += value

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """A gauge stands at `value`."""
        self.levels[metric, labels] = value

    def forget(self, metric: Metric) -> None:
        """Nobody knows where a gauge stands: better no value than an old one."""
        self.levels = {key: level for key, level in self.levels.items() if key[0] is not metric}

    def take_added(self) -> dict[Key, float]:
        """What was added to the counters since the last call."""
        added, self.added = self.added, defaultdict(float)
        return added

    # --- what happens

    def job_ended(self, kind: str, outcome: Outcome, age_s: float) -> None:
        """A job is over and its message is about to be deleted.

        Args:
            age_s: since its message was sent.
        """
        self.add(JOBS, 1, kind, outcome.status)
        if outcome.error is not None:
            self.add(FAILURES, 1, kind, outcome.error.code.value)
        self.observe(JOB_SECONDS, age_s, kind)
        self._attempt_ended(kind, outcome.usage)

    def job_retried(self, kind: str, outcome: Outcome) -> None:
        """A job goes back to the queue, to be tried again."""
        if outcome.error is not None:
            self.add(RETRIES, 1, kind, outcome.error.code.value)
        self._attempt_ended(kind, outcome.usage)

    def webhook_answered(self, path: str, verdict: str, answer: str) -> None:
        """A webhook was sent.

        Args:
            answer: begins with the HTTP status, if there was one.
        """
        is_http = answer[:3].isdigit() and answer[0] in "2345"
        status = f"{answer[0]}xx" if is_http else "none"
        self.add(WEBHOOKS, 1, path, status, verdict)

    def leases_renewed(self, renewed: int, lost: int, failed: int) -> None:
        """A round of renewals is over; messages by how it went."""
        for result, count in (("renewed", renewed), ("lost", lost), ("failed", failed)):
            if count:
                self.add(LEASE_RENEWALS, count, result)

    def _attempt_ended(self, kind: str, usage: Usage) -> None:
        for stage, seconds in usage.seconds.items():
            self.observe(STAGE_SECONDS, seconds, kind, stage)
        if usage.peak_memory_mb:
            self.observe(PEAK_MEMORY, usage.peak_memory_mb * 2**20, kind)
        for metric, amount in (
            (CPU_SECONDS, usage.cpu_s),
            (AUDIO_SECONDS, usage.audio_s),
            (READ_BYTES, usage.bytes_in),
            (WRITTEN_BYTES, usage.bytes_out),
        ):
            if amount:
                self.add(metric, amount, kind)

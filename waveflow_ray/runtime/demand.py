"""How many CPUs the backlog needs, for the autoscaler. No Ray in here.

Ray's autoscaler sees the tasks that wait, and there are never many: the rest of the backlog is in
the queue, where it is safe. So the ingress says how many CPUs would end all of it in time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from waveflow_ray.outcomes import Usage

LIGHT_CPUS, HEAVY_CPUS = 0.2, 0.8
"""What is set aside for a job; `placement` has it from here."""
SET_ASIDE = {"analysis": HEAVY_CPUS}
FIRST_GUESS = {"hash": 0.05, "duplicate": 0.05, "analysis": 0.5, "mix": 5.0}
OTHERS = 0.1
LEARNING = 0.05
"""Weight of the newest job in the averages: some sixty jobs are remembered."""
LEAST_TIME_LEFT = 0.25
"""However old the oldest job is, the backlog gets this part of the target."""


class Costs:
    """What jobs cost, in CPU seconds by kind, and how often each kind comes; learnt as they end."""

    def __init__(self) -> None:
        self._cpu_s = dict(FIRST_GUESS)
        self._mean_cpu_s: float | None = None

    def learn(self, kind: str, usage: Usage) -> None:
        """A job ended; what it did not compute it mostly waited, with a CPU set aside for it."""
        waited_s = sum(usage.seconds.get(stage, 0.0) for stage in ("download", "work", "upload"))
        cpu_s = max(usage.cpu_s, waited_s * SET_ASIDE.get(kind, LIGHT_CPUS))
        self._cpu_s[kind] = _towards(self.of(kind), cpu_s)
        self._mean_cpu_s = _towards(self.mean, cpu_s)

    def of(self, kind: str) -> float:
        """CPU seconds of a job of this kind."""
        return self._cpu_s.get(kind, OTHERS)

    @property
    def mean(self) -> float:
        """CPU seconds of a job whose kind is not known yet."""
        return self._mean_cpu_s if self._mean_cpu_s is not None else FIRST_GUESS["analysis"]


def _towards(old: float, new: float) -> float:
    return old + LEARNING * (new - old)


@dataclass(frozen=True)
class Backlog:
    """What is to be done: jobs in hand by kind, messages in the queue, age of the oldest job."""

    in_hand: Mapping[str, int]
    queued: int
    oldest_age_s: float


def cpus_needed(backlog: Backlog, costs: Costs, target_latency_s: float) -> int:
    """CPUs that end the backlog before its last job is `target_latency_s` old.

    The older the oldest job is already, the less time is left: what came with it is as old. Zero
    if nothing is to do.
    """
    cpu_s = sum(costs.of(kind) * count for kind, count in backlog.in_hand.items())
    cpu_s += costs.mean * backlog.queued
    left_s = max(target_latency_s - backlog.oldest_age_s, target_latency_s * LEAST_TIME_LEFT)
    return math.ceil(cpu_s / left_s)


def next_request(wanted: int, have: int, coming: int, step: int) -> int:
    """How many CPUs to ask for now: the autoscaler does nothing for more than it may start.

    Args:
        have: CPUs of the nodes that are there.
        coming: CPUs of those that are being started.
        step: CPUs that may be asked for beyond these.
    """
    return min(wanted, have + coming + step)

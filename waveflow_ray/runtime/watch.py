"""Looks at the service once a second and keeps its gauges. No Ray in here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from waveflow_ray import __version__
from waveflow_ray.aws.sqs import QueueError, QueueFacts
from waveflow_ray.metrics import (
    BUILD_INFO,
    CPUS_WANTED,
    DEAD_LETTERS,
    IN_HAND,
    NODES,
    OLDEST_AGE,
    QUEUE_MESSAGES,
    SERVER_AWAY,
    SLOTS,
    START_TIME,
    Metric,
    Metrics,
)
from waveflow_ray.runtime.demand import cpus_needed
from waveflow_ray.runtime.ingress import Ingress

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
QUEUE_EVERY_S = 10.0
"""A question to SQS is billed; these and the next are 300,000 a month, some 12 cents."""
DEAD_LETTERS_EVERY_S = 60.0
NODES_EVERY_S = 10.0

ASK_AGAIN_S = 5.0

Nodes = Callable[[], Awaitable[list[dict[str, Any]]]]


class Watch:
    """Sets the gauges and hands everything that was collected on.

    Args:
        nodes: Ray's entries of the nodes that are alive.
        ask_for_cpus: tells the autoscaler how many CPUs there should be.
        flush: hands what `metrics` collected to whoever exports it.
    """

    def __init__(
        self,
        ingress: Ingress,
        metrics: Metrics,
        nodes: Nodes,
        ask_for_cpus: Callable[[int], Awaitable[None]],
        flush: Callable[[], None],
    ) -> None:
        self.queue: QueueFacts | None = None  # as last seen
        self._ingress = ingress
        self._metrics = metrics
        self._nodes = nodes
        self._ask_for_cpus = ask_for_cpus
        self._asked_for: int | None = None
        self._ask_again = 0.0
        self._flush = flush
        self._failing: set[Metric] = set()

    async def run(self) -> None:
        """Watch until cancelled. Whatever fails here costs the service nothing."""
        self._metrics.set(BUILD_INFO, 1, __version__)
        self._metrics.set(START_TIME, time.time())
        # Each by itself: while SQS hangs, the others go on.
        await asyncio.gather(
            self._every(QUEUE_EVERY_S, QUEUE_MESSAGES, self._look_at_queue),
            self._every(DEAD_LETTERS_EVERY_S, DEAD_LETTERS, self._look_at_dead_letters),
            self._every(NODES_EVERY_S, NODES, self._look_at_nodes),
            self._every(LOOK_EVERY_S, CPUS_WANTED, self._look_at_backlog),
            self._every(LOOK_EVERY_S, IN_HAND, self._look_at_jobs),
        )

    async def facts(self) -> QueueFacts:
        """The queue's depths as last seen; asks if they never were."""
        if self.queue is None:
            await self._look_at_queue()
        assert self.queue is not None
        return self.queue

    async def _every(
        self, interval_s: float, metric: Metric, look: Callable[[], Awaitable[None]]
    ) -> None:
        while True:
            try:
                await look()
            except Exception as error:
                self._metrics.forget(metric)
                if metric not in self._failing:  # once, not every time
                    self._failing.add(metric)
                    unexpected = None if isinstance(error, QueueError) else error
                    fields = {"metric": metric.name, "cause": str(error)}
                    logger.warning("not measured", extra={"fields": fields}, exc_info=unexpected)
            else:
                self._failing.discard(metric)
            await asyncio.sleep(interval_s)

    async def _look_at_queue(self) -> None:
        leases = self._ingress.leases
        self.queue = facts = await leases.call(leases.queue.facts)
        self._metrics.set(QUEUE_MESSAGES, facts.visible, "visible")
        self._metrics.set(QUEUE_MESSAGES, facts.in_flight, "in_flight")
        self._metrics.set(QUEUE_MESSAGES, facts.delayed, "delayed")

    async def _look_at_dead_letters(self) -> None:
        await self._ingress.ready.wait()  # then it is known where they are
        leases = self._ingress.leases
        count = await leases.call(leases.queue.dead_letters)
        if count is not None:
            self._metrics.set(DEAD_LETTERS, count)

    async def _look_at_nodes(self) -> None:
        counts = Counter(map(node_type, await self._nodes()))
        for kind in NODES.labels["type"]:
            self._metrics.set(NODES, counts[kind], kind)

    async def _look_at_backlog(self) -> None:
        queued = self.queue.visible if self.queue is not None else 0
        ingress = self._ingress
        if ingress.draining:  # it is for whoever drains it to ask for less, or for its successor
            self._metrics.set(CPUS_WANTED, 0)
            return
        target_s = ingress.settings.target_latency_s
        cpus = cpus_needed(ingress.backlog(queued), ingress.costs, target_s)
        self._metrics.set(CPUS_WANTED, cpus)
        now = time.monotonic()
        again = cpus > 0 and now >= self._ask_again  # more may be had now, or spot was refused
        if cpus != self._asked_for or again:
            await self._ask_for_cpus(cpus)
            self._asked_for, self._ask_again = cpus, now + ASK_AGAIN_S

    async def _look_at_jobs(self) -> None:
        state, metrics = self._ingress.status(), self._metrics
        for kind in IN_HAND.labels["kind"]:
            held = state["in_flight"].get(kind, {})
            for stage in IN_HAND.labels["stage"]:
                metrics.set(IN_HAND, held.get(stage, 0), kind, stage)
        for size, count in state["slots"].items():
            metrics.set(SLOTS, count, size)
        metrics.set(OLDEST_AGE, state["oldest_age_s"])
        metrics.set(SERVER_AWAY, state["main_server_away"])
        self._flush()


def node_type(node: Mapping[str, Any]) -> str:
    """``head``, ``spot``, ``ondemand`` or ``other``, by what Ray knows of a node.

    Ray's autoscaler gives every node the name of its type as a label; a cluster without it can
    label nodes by RAY_NODE_MARKET_TYPE in the environment of `ray start`, or give them a resource.
    """
    resources: Iterable[str] = node.get("Resources", {})
    if "node:__internal_head__" in resources:
        return "head"
    labels = node.get("Labels", {})
    names = [labels.get("ray.io/node-group", ""), labels.get("ray.io/market-type", ""), *resources]
    plain = [name.lower().replace("-", "").replace("_", "") for name in names]
    for kind in ("spot", "ondemand"):
        if any(name.removeprefix("worker").startswith(kind) for name in plain):
            return kind
    return "other"
